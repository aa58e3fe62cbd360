/**
 * Workers, classes and the processes of the server: who is there, on the database's clock.
 */
import type { TokenId, WorkerId } from "@coppice/core";

import type { Queryable, Row } from "./client.ts";

export interface NewWorker {
  readonly id: WorkerId;
  readonly tokenId: TokenId;
  readonly name: string;
  readonly host: string;
  readonly version: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly slots: number;
  readonly gpus: number;
  readonly devices: unknown;
  /** The worker's clock when it asked. */
  readonly clockMs: number;
}

const INSERT_WORKER = {
  name: "insert-worker",
  text: `insert into worker (id, token_id, name, host, version, labels, slots, gpus, devices, clock_skew_ms,
           free_slots, free_gpus)
         values ($1, $2, $3, $4, $5, $6::jsonb, $7, $8, $9::jsonb,
           $10 - extract(epoch from clock_timestamp()) * 1000, $7, $8)
         returning clock_skew_ms as "clockSkewMs"`,
};

export const insertWorker = async (db: Queryable, worker: NewWorker): Promise<number> => {
  const [row] = await db.query<{ clockSkewMs: number }>(INSERT_WORKER, [
    worker.id,
    worker.tokenId,
    worker.name,
    worker.host,
    worker.version,
    JSON.stringify(worker.labels),
    worker.slots,
    worker.gpus,
    JSON.stringify(worker.devices),
    worker.clockMs,
  ]);
  return row?.clockSkewMs ?? 0;
};

const SEE_WORKER = {
  name: "see-worker",
  text: `update worker set seen_at = clock_timestamp(), free_slots = $2, free_gpus = $3, is_draining = $4
         where id = $1 returning labels, gpus, slots`,
};

/** Stamps a worker as alive; undefined where nobody knows it (any more). */
export const seeWorker = async (
  db: Queryable,
  id: WorkerId,
  freeSlots: number,
  freeGpus: number,
  isDraining: boolean,
): Promise<
  | { readonly labels: Record<string, string>; readonly gpus: number; readonly slots: number }
  | undefined
> => {
  const rows = await db.query<{ labels: Record<string, string>; gpus: number; slots: number }>(
    SEE_WORKER,
    [id, freeSlots, freeGpus, isDraining],
  );
  return rows[0];
};

export interface WorkerClass {
  readonly id: number;
  readonly key: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly gpu: number;
}

const LOAD_CLASSES = {
  name: "load-classes",
  text: "select id, key, labels, gpu from class order by id",
};
const INSERT_CLASS = {
  name: "insert-class",
  text: `insert into class (id, key, labels, gpu)
         select n, $1, $2::jsonb, $3 from generate_series(1, 32) n
         where not exists (select from class where id = n) order by n limit 1
         on conflict do nothing`,
};

export const loadClasses = (db: Queryable): Promise<WorkerClass[]> =>
  db.query<WorkerClass & Row>(LOAD_CLASSES);

/** Does nothing where the class exists, or where all 32 are taken: look again after. */
export const insertClass = async (
  db: Queryable,
  entry: Pick<WorkerClass, "key" | "labels" | "gpu">,
): Promise<void> => {
  await db.query(INSERT_CLASS, [entry.key, JSON.stringify(entry.labels), entry.gpu]);
};

const STAMP = {
  name: "stamp-process",
  text: `insert into server_process (id, kind, up_since, seen_at)
         values ($1, $2, clock_timestamp(), clock_timestamp())
         on conflict (id) do update set seen_at = clock_timestamp(),
           up_since = case when server_process.seen_at < clock_timestamp() - $3 * interval '1 millisecond'
             then clock_timestamp() else server_process.up_since end`,
};

/** A gap of more than `gapMs` since the last stamp starts the process's unbroken time anew. */
export const stampProcess = async (
  db: Queryable,
  id: string,
  kind: "api" | "scheduler",
  gapMs: number,
): Promise<void> => {
  await db.query(STAMP, [id, kind, gapMs]);
};

const IS_API_STEADY = {
  name: "is-api-steady",
  text: `select exists (select from server_process where kind = 'api'
           and seen_at > clock_timestamp() - $2 * interval '1 millisecond'
           and up_since < clock_timestamp() - $1 * interval '1 millisecond') as steady`,
};

/** Whether some API process has answered without a gap for `steadyMs`. */
export const isApiSteady = async (
  db: Queryable,
  steadyMs: number,
  gapMs: number,
): Promise<boolean> => {
  const [row] = await db.query<{ steady: boolean }>(IS_API_STEADY, [steadyMs, gapMs]);
  return row?.steady === true;
};

const FORGET = {
  name: "forget-processes",
  text: `with gone as (delete from server_process where seen_at < clock_timestamp() - interval '1 day')
         delete from worker where seen_at < clock_timestamp() - interval '7 days'`,
};

export const forgetGoneProcesses = async (db: Queryable): Promise<void> => {
  await db.query(FORGET);
};

const LOAD_VERSION = {
  name: "load-pipeline-version",
  text: `select v.id, v.project_id as "projectId", p.name as "projectName", v.name, v.version, v.ir,
           v.bundle_digest as "bundleDigest"
         from pipeline_version v join project p on p.id = v.project_id where v.id = $1`,
};

export interface StoredVersion {
  readonly id: string;
  readonly projectId: string;
  readonly projectName: string;
  readonly name: string;
  readonly version: number;
  readonly ir: unknown;
  readonly bundleDigest: string;
}

export const loadVersion = async (db: Queryable, id: string): Promise<StoredVersion | undefined> =>
  (await db.query<StoredVersion & Row>(LOAD_VERSION, [id]))[0];

const LOAD_RUN_FACTS = {
  name: "load-run-facts",
  text: `select id, params, traceparent from run where id = any($1::uuid[])`,
};

export interface RunFacts {
  readonly id: string;
  readonly params: unknown;
  readonly traceparent: string | null;
}

/** What never changes about a run. */
export const loadRunFacts = (db: Queryable, ids: readonly string[]): Promise<RunFacts[]> =>
  db.query<RunFacts & Row>(LOAD_RUN_FACTS, [ids]);
