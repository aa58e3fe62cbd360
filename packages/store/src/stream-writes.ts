/**
 * What streams from running attempts: leases renewed, logs, metrics, checkpoints.
 *
 * What must stay true: each is fenced by (attempt, lease) and may be written again without effect. None
 * is a state change, so none takes the run's lock.
 */
import type { AttemptRef, LeaseToken } from "@coppice/core";

import type { Queryable, Row } from "./client.ts";

export type LeasedAttempt = AttemptRef & { readonly lease: LeaseToken };

export interface LeasedRow {
  readonly runId: string;
  readonly step: number;
  readonly item: number;
  readonly attempt: number;
  readonly projectId: string;
  readonly workerId: string | null;
  readonly isCancelRequested: boolean;
}

const FENCE_ROW = `s.run_id as "runId", s.step, s.item, s.attempt, s.project_id as "projectId",
           s.worker_id as "workerId", s.cancel_requested as "isCancelRequested"`;

const columns = (attempts: readonly LeasedAttempt[]): unknown[] => [
  attempts.map((attempt) => attempt.runId),
  attempts.map((attempt) => attempt.step),
  attempts.map((attempt) => attempt.item),
  attempts.map((attempt) => attempt.attempt),
  attempts.map((attempt) => attempt.lease),
];

/**
 * Rows that a commit is changing at this moment are left out instead of waited for: renewing several
 * leases while waiting for one would let a commit wait in a circle.
 */
const RENEW = {
  name: "renew-leases",
  text: `with held as (
           select s.run_id, s.step, s.item from step_run s,
             unnest($1::uuid[], $2::smallint[], $3::int[], $4::smallint[], $5::uuid[])
               as u(run_id, step, item, attempt, lease)
           where s.run_id = u.run_id and s.step = u.step and s.item = u.item
             and s.attempt = u.attempt and s.lease_token = u.lease and s.state = 'running'
           for no key update of s skip locked)
         update step_run s set lease_until = clock_timestamp() + $6 * interval '1 millisecond'
         from held h where s.run_id = h.run_id and s.step = h.step and s.item = h.item
         returning ${FENCE_ROW}`,
};

/**
 * Answers the attempts whose lease was renewed; an expired one that nobody superseded lives on. Ask
 * `checkLeases` about the others.
 */
export const renewLeases = (
  db: Queryable,
  attempts: readonly LeasedAttempt[],
  leaseMs: number,
): Promise<LeasedRow[]> =>
  attempts.length === 0
    ? Promise.resolve([])
    : db.query<LeasedRow & Row>(RENEW, [...columns(attempts), leaseMs]);

const CHECK = {
  name: "check-leases",
  text: `select ${FENCE_ROW} from step_run s, unnest($1::uuid[], $2::smallint[], $3::int[], $4::smallint[],
           $5::uuid[]) as u(run_id, step, item, attempt, lease)
         where s.run_id = u.run_id and s.step = u.step and s.item = u.item and s.attempt = u.attempt
           and s.lease_token = u.lease and s.state = 'running'`,
};

export const checkLeases = (
  db: Queryable,
  attempts: readonly LeasedAttempt[],
): Promise<LeasedRow[]> =>
  attempts.length === 0 ? Promise.resolve([]) : db.query<LeasedRow & Row>(CHECK, columns(attempts));

const CHECKPOINT = {
  name: "save-checkpoint",
  text: `update step_run s set checkpoint = $6 where s.run_id = $1 and s.step = $2 and s.item = $3
           and s.attempt = $4 and s.lease_token = $5 and s.state = 'running'`,
};

/** One row, so it may wait for a commit that holds it. */
export const saveCheckpoint = async (
  db: Queryable,
  checkpoint: LeasedAttempt & { readonly sha256: string },
): Promise<void> => {
  const { runId, step, item, attempt, lease, sha256 } = checkpoint;
  await db.query(CHECKPOINT, [runId, step, item, attempt, lease, sha256]);
};

export interface LogChunk extends AttemptRef {
  readonly projectId: string;
  readonly offset: number;
  readonly sizeBytes: number;
  readonly text: string;
}

const INSERT_LOGS = {
  name: "insert-logs",
  text: `insert into log_chunk (run_id, step, item, attempt, byte_offset, project_id, size_bytes, body)
         select * from unnest($1::uuid[], $2::smallint[], $3::int[], $4::smallint[], $5::bigint[],
           $6::uuid[], $7::int[], $8::text[])
         on conflict (run_id, step, item, attempt, byte_offset) do nothing`,
};

export const insertLogs = async (db: Queryable, chunks: readonly LogChunk[]): Promise<void> => {
  if (chunks.length === 0) return;
  await db.query(INSERT_LOGS, [
    chunks.map((chunk) => chunk.runId),
    chunks.map((chunk) => chunk.step),
    chunks.map((chunk) => chunk.item),
    chunks.map((chunk) => chunk.attempt),
    chunks.map((chunk) => chunk.offset),
    chunks.map((chunk) => chunk.projectId),
    chunks.map((chunk) => chunk.sizeBytes),
    // PostgreSQL's text has no zero byte.
    chunks.map((chunk) => chunk.text.replaceAll("\0", "\uFFFD")),
  ]);
};

/** How much of one attempt's log is kept: this many bytes at its head and as many at its tail. */
export const LOG_END_BYTES = 5 * 1024 * 1024;

const TRIM_LOGS = {
  name: "trim-logs",
  text: `delete from log_chunk l
         using unnest($1::uuid[], $2::smallint[], $3::int[], $4::smallint[], $5::bigint[])
           as u(run_id, step, item, attempt, last_offset)
         where l.run_id = u.run_id and l.step = u.step and l.item = u.item and l.attempt = u.attempt
           and l.byte_offset >= $6 and l.byte_offset < u.last_offset - $6`,
};

/** Cuts the middle out of logs that have grown past head and tail. */
export const trimLogs = async (
  db: Queryable,
  ends: readonly (AttemptRef & { readonly lastOffset: number })[],
): Promise<void> => {
  const long = ends.filter((end) => end.lastOffset > 2 * LOG_END_BYTES);
  if (long.length === 0) return;
  await db.query(TRIM_LOGS, [
    long.map((end) => end.runId),
    long.map((end) => end.step),
    long.map((end) => end.item),
    long.map((end) => end.attempt),
    long.map((end) => end.lastOffset),
    LOG_END_BYTES,
  ]);
};

export interface MetricPoint extends AttemptRef {
  readonly projectId: string;
  readonly key: string;
  readonly metricStep: number;
  /** "NaN" and "±Infinity" as PostgreSQL spells them. */
  readonly value: number | string;
  readonly atMs: number;
}

const INSERT_METRICS = {
  name: "insert-metrics",
  text: `insert into metric (run_id, step, item, attempt, key, metric_step, project_id, value, at)
         select run_id, step, item, attempt, key, metric_step, project_id, value::float8,
           to_timestamp(at_ms / 1000.0)
         from unnest($1::uuid[], $2::smallint[], $3::int[], $4::smallint[], $5::text[], $6::bigint[],
           $7::uuid[], $8::text[], $9::bigint[])
           as u(run_id, step, item, attempt, key, metric_step, project_id, value, at_ms)
         on conflict (run_id, step, item, attempt, key, metric_step)
           do update set value = excluded.value, at = excluded.at`,
};

export const insertMetrics = async (
  db: Queryable,
  points: readonly MetricPoint[],
): Promise<void> => {
  if (points.length === 0) return;
  // The last of several points of one step counts; PostgreSQL refuses to update a row twice.
  const unique = [
    ...new Map(
      points.map((point) => [
        `${point.runId}/${point.step}/${point.item}/${point.attempt}/${point.metricStep}/${point.key}`,
        point,
      ]),
    ).values(),
  ];
  await db.query(INSERT_METRICS, [
    unique.map((point) => point.runId),
    unique.map((point) => point.step),
    unique.map((point) => point.item),
    unique.map((point) => point.attempt),
    unique.map((point) => point.key),
    unique.map((point) => point.metricStep),
    unique.map((point) => point.projectId),
    unique.map((point) => String(point.value)),
    unique.map((point) => point.atMs),
  ]);
};
