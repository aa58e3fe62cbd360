/**
 * Idempotency keys of submissions: the first request with a key is carried out, later ones are answered
 * as it was, and another body under the same key is refused.
 */
import { CoppiceError } from "@coppice/core";
import { claimIdempotencyKeys, type Queryable } from "@coppice/store";

import type { EventResult, SubmitEvent } from "./events.ts";

type KeyedSubmit = SubmitEvent & { readonly idempotency: NonNullable<SubmitEvent["idempotency"]> };

const isKeyed = (event: SubmitEvent): event is KeyedSubmit => event.idempotency !== undefined;

const keyOf = (event: KeyedSubmit): string => `${event.run.projectId}/${event.idempotency.key}`;

/** @returns results for the submissions that are not to be carried out */
export const claimKeys = async (
  tx: Queryable,
  submits: readonly SubmitEvent[],
): Promise<Map<SubmitEvent, EventResult>> => {
  const results = new Map<SubmitEvent, EventResult>();
  const firsts = new Map<string, KeyedSubmit>();
  for (const event of submits) {
    if (isKeyed(event) && !firsts.has(keyOf(event))) firsts.set(keyOf(event), event);
  }
  if (firsts.size === 0) return results;
  // In key order, so that two commits with the same keys don't wait for each other in a circle.
  const sorted = [...firsts.entries()].toSorted(([left], [right]) => (left < right ? -1 : 1));
  const stored = await claimIdempotencyKeys(
    tx,
    sorted.map(([, event]) => ({ projectId: event.run.projectId, ...event.idempotency })),
  );
  const held = new Map(stored.map((row) => [`${row.projectId}/${row.key}`, row]));
  for (const event of submits) {
    if (!isKeyed(event)) continue;
    const first = firsts.get(keyOf(event));
    const row = held.get(keyOf(event));
    if (first === event && row?.isNew === true) continue;
    const isSame = Buffer.from(event.idempotency.requestSha256).equals(
      row?.requestSha256 ?? Buffer.of(),
    );
    results.set(
      event,
      isSame
        ? { type: "submitted", isReplay: true, response: row?.response }
        : { type: "refused", error: new CoppiceError("CPC_IDEMPOTENCY_MISMATCH") },
    );
  }
  return results;
};
