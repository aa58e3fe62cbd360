/**
 * Names of things. Inside, an id is a UUID (version 7, so that ids sort by time and new rows land on
 * the same index pages); people see `run_<base32>` and may shorten it to any unique prefix or suffix.
 *
 * A step run needs no id of its own: it is (run, step's index in the pipeline, item), item 0 for a
 * step without `map`. An attempt adds its number, from 1.
 */
import { CoppiceError } from "./errors.ts";

declare const brand: unique symbol;
type Branded<Name extends string> = string & { readonly [brand]: Name };

/** All of these hold UUID text, lower case, with hyphens. */
export type ProjectId = Branded<"project">;
export type RunId = Branded<"run">;
export type WorkerId = Branded<"worker">;
export type TokenId = Branded<"token">;
export type PipelineVersionId = Branded<"pipelineVersion">;
/** Invented by the worker: whoever holds it may finish the attempt. */
export type LeaseToken = Branded<"lease">;

export interface IdByPrefix {
  readonly prj: ProjectId;
  readonly run: RunId;
  readonly wrk: WorkerId;
  readonly tok: TokenId;
  readonly plv: PipelineVersionId;
  readonly lse: LeaseToken;
}
export type IdPrefix = keyof IdByPrefix;

/** Crockford's alphabet, lower case: no i, l, o, u. */
const ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz";
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;

/**
 * RFC 9562 version 7: 48 bits of milliseconds, 74 random bits.
 * @param random 10 bytes from a cryptographic source
 */
export const uuidV7 = (nowMs: number, random: Uint8Array): string => {
  const time = Math.floor(nowMs).toString(16).padStart(12, "0");
  const bytes = Array.from(random.subarray(0, 10));
  bytes[0] = ((bytes[0] ?? 0) & 0x0f) | 0x70;
  bytes[2] = ((bytes[2] ?? 0) & 0x3f) | 0x80;
  const tail = bytes.map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return `${time.slice(0, 8)}-${time.slice(8)}-${tail.slice(0, 4)}-${tail.slice(4, 8)}-${tail.slice(8)}`;
};

/** UUID → `run_01k…`: 26 characters of base32, most significant first. */
export const formatId = <P extends IdPrefix>(prefix: P, id: IdByPrefix[P]): string => {
  let value = BigInt(`0x${id.replaceAll("-", "")}`);
  let text = "";
  for (let index = 0; index < 26; index += 1) {
    text = (ALPHABET[Number(value & 31n)] ?? "") + text;
    value >>= 5n;
  }
  return `${prefix}_${text}`;
};

/** `run_01k…` or a UUID → the id; undefined where it is neither. */
export const parseId = <P extends IdPrefix>(prefix: P, text: string): IdByPrefix[P] | undefined => {
  const lower = text.toLowerCase();
  if (UUID.test(lower)) return lower as IdByPrefix[P];
  const body = lower.startsWith(`${prefix}_`) ? lower.slice(prefix.length + 1) : undefined;
  if (body === undefined || !/^[0-7][0-9a-hjkmnp-tv-z]{25}$/.test(body)) return undefined;
  let value = 0n;
  for (const letter of body) value = (value << 5n) | BigInt(ALPHABET.indexOf(letter));
  const hex = value.toString(16).padStart(32, "0");
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}` as IdByPrefix[P];
};

/** @throws CPC_INVALID_INPUT */
export const requireId = <P extends IdPrefix>(prefix: P, text: string): IdByPrefix[P] => {
  const id = parseId(prefix, text);
  if (id === undefined) {
    throw new CoppiceError("CPC_INVALID_INPUT", {
      detail: `expected an id such as ${prefix}_… Received: ${JSON.stringify(text.slice(0, 80))}`,
    });
  }
  return id;
};

/** One step of one run; item 0 where the step has no map. */
export interface StepRunRef {
  readonly runId: RunId;
  /** Index of the step in the pipeline's IR. */
  readonly step: number;
  readonly item: number;
}

export interface AttemptRef extends StepRunRef {
  /** From 1. */
  readonly attempt: number;
}

/** A map's key; also the stem of the queue job's id. */
export const stepRunKey = (ref: StepRunRef): string => `${ref.runId}-${ref.step}-${ref.item}`;
export const attemptKey = (ref: AttemptRef): string => `${stepRunKey(ref)}-a${ref.attempt}`;
