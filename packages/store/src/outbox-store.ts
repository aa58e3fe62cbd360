/**
 * Bells that a commit decided on. The committer rings them and deletes the row; what it could not ring,
 * because it died or the doorbell was away, a sweep claims and rings.
 */
import type { JsonValue } from "@coppice/core";

import type { Queryable, Row } from "./client.ts";

const INSERT = {
  name: "insert-outbox",
  text: "insert into outbox (bells) values ($1::jsonb) returning id",
};
const DELETE = { name: "delete-outbox", text: "delete from outbox where id = any($1::bigint[])" };
const CLAIM = {
  name: "claim-outbox",
  text: `update outbox set claimed_until = clock_timestamp() + $2 * interval '1 millisecond'
         where id in (select id from outbox
           where created_at < clock_timestamp() - $1 * interval '1 millisecond'
             and (claimed_until is null or claimed_until < clock_timestamp())
           order by id limit $3 for update skip locked)
         returning id, bells`,
};

export const insertOutbox = async (tx: Queryable, bells: JsonValue): Promise<number> => {
  const [row] = await tx.query<{ id: number }>(INSERT, [JSON.stringify(bells)]);
  return row?.id ?? 0;
};

export const deleteOutbox = async (tx: Queryable, ids: readonly number[]): Promise<void> => {
  if (ids.length > 0) await tx.query(DELETE, [ids]);
};

export interface OutboxRow {
  readonly id: number;
  readonly bells: JsonValue;
}

/** Rows older than `olderThanMs` that nobody holds, held for `claimMs`. */
export const claimOutbox = (
  db: Queryable,
  olderThanMs: number,
  claimMs: number,
  limit: number,
): Promise<OutboxRow[]> => db.query<OutboxRow & Row>(CLAIM, [olderThanMs, claimMs, limit]);
