/**
 * From what a person typed to a run: the whole id, or any beginning or end of it that is unique in
 * the project. Beginnings are a range of ids; ends are compared digit by digit.
 */
import { CoppiceError, formatId, parseId, type ProjectId, type RunId } from "@coppice/core";
import { type Database, findRunsBetween, findRunsEnding } from "@coppice/store";

const ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz";
const BODY = /^[0-9a-hjkmnp-tv-z]{1,26}$/;
const LENGTH = 26;
const ALL_BITS = (1n << 128n) - 1n;
/** A shorter end would be a search over half of all runs. */
const END_LENGTH_MIN = 4;

const toNumber = (text: string): bigint => {
  let value = 0n;
  for (const letter of text) value = (value << 5n) | BigInt(ALPHABET.indexOf(letter));
  return value;
};

const toUuid = (value: bigint): RunId => {
  const hex = value.toString(16).padStart(32, "0");
  return [8, 12, 16, 20].reduceRight(
    (text, at) => `${text.slice(0, at)}-${text.slice(at)}`,
    hex,
  ) as RunId;
};

/** The lowest and the highest id that begin so; undefined where none can. */
export const rangeOf = (beginning: string): { low: RunId; high: RunId } | undefined => {
  const bits = BigInt(5 * (LENGTH - beginning.length));
  const low = toNumber(beginning) << bits;
  if (low > ALL_BITS) return undefined;
  const high = low | ((1n << bits) - 1n);
  return { low: toUuid(low), high: toUuid(high > ALL_BITS ? ALL_BITS : high) };
};

/** The UUID's last digits that an end settles in full. */
export const endingOf = (end: string): string => {
  const digits = Math.floor((5 * end.length) / 4);
  const hex = (toNumber(end) & ((1n << BigInt(4 * digits)) - 1n))
    .toString(16)
    .padStart(digits, "0");
  const grouped = toUuid(BigInt(`0x${hex}`));
  const hyphens = [12, 16, 20, 24].filter((count) => digits > count).length;
  return grouped.slice(grouped.length - digits - hyphens);
};

const search = async (db: Database, projectId: ProjectId, text: string): Promise<RunId[]> => {
  const lower = text.toLowerCase();
  const isMarked = lower.startsWith("run_");
  const body = isMarked ? lower.slice("run_".length) : lower;
  if (!BODY.test(body)) return [];
  const range = rangeOf(body);
  const begin =
    range === undefined ? [] : await findRunsBetween(db, projectId, range.low, range.high);
  if (isMarked || begin.length > 0 || body.length < END_LENGTH_MIN) return begin;
  const candidates = await findRunsEnding(db, projectId, endingOf(body));
  return candidates.filter((id) => formatId("run", id).endsWith(body));
};

/** @throws CPC_RUN_NOT_FOUND, CPC_RUN_AMBIGUOUS. A whole id is not looked up. */
export const resolveRunId = async (
  db: Database,
  projectId: ProjectId,
  text: string,
): Promise<RunId> => {
  const whole = parseId("run", text);
  if (whole !== undefined) return whole;
  const [first, second] = await search(db, projectId, text);
  if (first === undefined) {
    throw new CoppiceError("CPC_RUN_NOT_FOUND", { detail: `Received: ${JSON.stringify(text)}` });
  }
  if (second !== undefined) {
    throw new CoppiceError("CPC_RUN_AMBIGUOUS", {
      detail: `${text} fits ${formatId("run", first)} and ${formatId("run", second)} at least.`,
    });
  }
  return first;
};
