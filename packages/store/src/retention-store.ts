/**
 * What has been kept long enough. In portions, so that nobody waits for a long transaction.
 *
 * What must stay true: a run that is not finished is never touched; bytes are told to be deletable
 * only when no project refers to them and no attempt may still be about to.
 */
import type { Queryable } from "./client.ts";

const PORTION = 500;

const DELETE_RUNS = {
  name: "delete-old-runs",
  // No order and a literal limit: the scan stops at the first old runs, which lie at the table's beginning,
  // and the plan for any parameters knows that there are few.
  text: `with old as (select id from run where finished_at < clock_timestamp()
             - $1 * interval '1 millisecond' limit ${PORTION}),
           a as (delete from step_run where run_id in (select id from old)),
           b as (delete from attempt where run_id in (select id from old)),
           c as (delete from run_event where run_id in (select id from old)),
           d as (delete from log_chunk where run_id in (select id from old)),
           e as (delete from metric where run_id in (select id from old)),
           f as (delete from artifact_ref where run_id in (select id from old))
         delete from run where id in (select id from old) returning id`,
};
const DELETE_LOGS = {
  name: "delete-old-logs",
  text: `delete from log_chunk where ctid in (select ctid from log_chunk
           where at < clock_timestamp() - $1 * interval '1 millisecond' limit ${PORTION}) returning run_id`,
};
const DELETE_UPLOADS = {
  name: "delete-old-uploads",
  text: `delete from artifact_upload u where u.at < clock_timestamp() - $1 * interval '1 millisecond'
           and not exists (select from step_run s where s.project_id = u.project_id
             and s.checkpoint = u.sha256)
         returning u.sha256`,
};
const DELETE_EXPIRED = `
  with c as (delete from sign_in_code where expires_at < clock_timestamp()),
    i as (delete from idempotency where created_at < clock_timestamp() - interval '1 day')
  delete from session where expires_at < clock_timestamp()`;

const inPortions = async (db: Queryable, statement: typeof DELETE_RUNS, ageMs: number) => {
  let total = 0;
  for (;;) {
    const { length } = await db.query(statement, [ageMs]);
    total += length;
    if (length < PORTION) return total;
  }
};

/** Finished runs and everything under them. */
export const deleteOldRuns = async (db: Queryable, ageMs: number): Promise<number> =>
  await inPortions(db, DELETE_RUNS, ageMs);

export const deleteOldLogs = async (db: Queryable, ageMs: number): Promise<number> =>
  await inPortions(db, DELETE_LOGS, ageMs);

/** Upload rows that are old: what became a reference is reached by that. */
export const deleteOldUploads = async (db: Queryable, ageMs: number): Promise<number> =>
  (await db.query(DELETE_UPLOADS, [ageMs])).length;

/** Sessions, sign-in codes and idempotency keys that have had their time. */
export const deleteExpired = async (db: Queryable): Promise<void> => {
  await db.query(DELETE_EXPIRED);
};

const UNREFERENCED = {
  name: "unreferenced-digests",
  text: `select d.sha256 from unnest($1::text[]) as d(sha256)
         where not exists (select from artifact_ref r where r.sha256 = d.sha256)
           and not exists (select from artifact_upload u where u.sha256 = d.sha256)
           and not exists (select from bundle b where b.digest = d.sha256)
           and not exists (select from step_run s where s.checkpoint = d.sha256)`,
};

/** Which of these digests no row of any project mentions. */
export const findUnreferenced = async (
  db: Queryable,
  digests: readonly string[],
): Promise<string[]> =>
  (await db.query<{ sha256: string }>(UNREFERENCED, [digests])).map(({ sha256 }) => sha256);
