/**
 * What admission reads: who waits, in which order, and how many workers are free for them.
 */
import type { LeaseToken, RunId, WorkerId } from "@coppice/core";

import type { Queryable, Row } from "./client.ts";

export interface WaitingStepRun {
  readonly classId: number;
  readonly runId: RunId;
  readonly step: number;
  readonly item: number;
  readonly state: "ready" | "queued";
  readonly attempt: number;
  readonly ring: number;
  readonly priority: number;
  readonly isPooled: boolean;
  /** Sorts like time; the database's text. */
  readonly readyAt: string;
}

const LOAD_WAITING = {
  name: "load-waiting",
  text: `select w.class_id as "classId", w.run_id as "runId", w.step, w.item, w.state, w.attempt, w.ring,
           w.priority, w.is_pooled as "isPooled", to_char(w.ready_at at time zone 'UTC',
             'YYYY-MM-DD"T"HH24:MI:SS.US') as "readyAt"
         from unnest($1::smallint[], $2::int[]) as c(class_id, n)
         cross join lateral (
           (select * from step_run s where s.class_id = c.class_id and s.state = 'ready'
              and not s.is_pooled order by s.priority desc, s.ready_at limit c.n)
           union all
           (select * from (
              select * from step_run s where s.class_id = c.class_id and s.state = 'ready'
                and s.is_pooled order by s.priority desc, s.ready_at limit 5000) s
            where not exists (
              select from jsonb_to_recordset(s.pools) as w(name text, weight int)
              left join pool p on p.project_id = s.project_id and p.name = w.name
              where p.name is null or p.used + w.weight > p.capacity)
            order by s.priority desc, s.ready_at limit c.n)
           union all
           (select * from step_run s where s.class_id = c.class_id and s.state = 'queued'
              and not s.is_pooled and s.queued_at < clock_timestamp() - $3 * interval '1 millisecond'
            order by s.priority desc, s.ready_at limit c.n)
         ) w`,
};

/**
 * The first `limit` of each class by priority, then age; pooled ones apart, those passed over whose pool
 * has no room, so that a full pool blocks nobody else. Queued ones only where their bell has been silent
 * for `bellSilentMs`: younger bells are about to be answered.
 */
export const loadWaiting = (
  tx: Queryable,
  classes: readonly { readonly classId: number; readonly limit: number }[],
  bellSilentMs: number,
): Promise<WaitingStepRun[]> =>
  tx.query<WaitingStepRun & Row>(LOAD_WAITING, [
    classes.map((entry) => entry.classId),
    classes.map((entry) => entry.limit),
    bellSilentMs,
  ]);

export interface PoolState {
  readonly projectId: string;
  readonly name: string;
  readonly capacity: number;
  readonly used: number;
}

const LOCK_POOLS = {
  name: "lock-pools",
  text: `select p.project_id as "projectId", p.name, p.capacity, p.used from pool p
         join unnest($1::uuid[], $2::text[]) as u(project_id, name)
           on p.project_id = u.project_id and p.name = u.name
         order by p.project_id, p.name for no key update of p`,
};

export const lockPools = (
  tx: Queryable,
  pools: readonly { readonly projectId: string; readonly name: string }[],
): Promise<PoolState[]> =>
  tx.query<PoolState & Row>(LOCK_POOLS, [
    pools.map((pool) => pool.projectId),
    pools.map((pool) => pool.name),
  ]);

const ADD_TO_POOLS = {
  name: "add-to-pools",
  text: `with locked as (select p.project_id, p.name from pool p
           join unnest($1::uuid[], $2::text[]) as k(project_id, name)
             on p.project_id = k.project_id and p.name = k.name
           order by p.project_id, p.name for no key update of p)
         update pool p set used = greatest(0, p.used + u.delta)
         from unnest($1::uuid[], $2::text[], $3::int[]) as u(project_id, name, delta)
         where p.project_id = u.project_id and p.name = u.name
           and exists (select from locked l where l.project_id = p.project_id and l.name = p.name)`,
};

export const addToPools = async (
  tx: Queryable,
  changes: readonly { readonly projectId: string; readonly name: string; readonly delta: number }[],
): Promise<void> => {
  if (changes.length === 0) return;
  await tx.query(ADD_TO_POOLS, [
    changes.map((change) => change.projectId),
    changes.map((change) => change.name),
    changes.map((change) => change.delta),
  ]);
};

export interface WorkerCapacity {
  readonly id: WorkerId;
  readonly labels: Readonly<Record<string, string>>;
  readonly slots: number;
  readonly gpus: number;
  readonly running: number;
  /** GPUs that those attempts hold. */
  readonly gpusInUse: number;
}

const LOAD_CAPACITY = {
  name: "load-capacity",
  text: `select w.id, w.labels, w.slots, w.gpus, coalesce(r.running, 0)::int as running,
           coalesce(r.gpus, 0)::int as "gpusInUse"
         from worker w left join (
           select s.worker_id, count(*) as running, sum(c.gpu) as gpus
           from class c join step_run s on s.class_id = c.id and s.state = 'running'
           group by s.worker_id
         ) r on r.worker_id = w.id
         where not w.is_draining and w.seen_at > clock_timestamp() - $1 * interval '1 millisecond'`,
};

/** Workers that were seen within `seenMs`, and how many attempts each runs. */
export const loadCapacity = (db: Queryable, seenMs: number): Promise<WorkerCapacity[]> =>
  db.query<WorkerCapacity & Row>(LOAD_CAPACITY, [seenMs]);

export interface ClassLoad {
  readonly classId: number;
  readonly ready: number;
  readonly queued: number;
  readonly running: number;
  readonly retrying: number;
  readonly oldestReadyMs: number;
}

const LOAD_CLASS_LOADS = {
  name: "load-class-loads",
  text: `select c.id as "classId",
           coalesce(sum(l.n) filter (where l.state = 'ready'), 0)::int as ready,
           coalesce(sum(l.n) filter (where l.state = 'queued'), 0)::int as queued,
           coalesce(sum(l.n) filter (where l.state = 'running'), 0)::int as running,
           coalesce(sum(l.n) filter (where l.state = 'retrying'), 0)::int as retrying,
           coalesce(max(l.age_ms) filter (where l.state = 'ready'), 0)::float8 as "oldestReadyMs"
         from class c left join lateral (
           select s.state, count(*) as n,
             extract(epoch from clock_timestamp() - min(s.ready_at)) * 1000 as age_ms
           from step_run s where s.class_id = c.id
             and s.state in ('ready', 'queued', 'running', 'retrying') group by s.state) l on true
         group by c.id order by c.id`,
};

export const loadClassLoads = (db: Queryable): Promise<ClassLoad[]> =>
  db.query<ClassLoad & Row>(LOAD_CLASS_LOADS);

// ── what the reconciler looks for ─────────────────────────────────────────────────────────────────

export interface OpenAttempt {
  readonly runId: RunId;
  readonly step: number;
  readonly item: number;
  readonly attempt: number;
  readonly lease: LeaseToken | null;
}

export interface SilentAttempt extends OpenAttempt {
  readonly ring: number;
  readonly classId: number;
}

const OPEN_ATTEMPT = `s.run_id as "runId", s.step, s.item, s.attempt, s.lease_token as lease`;

const LOAD_EXPIRED = {
  name: "load-expired",
  text: `select ${OPEN_ATTEMPT} from step_run s
         where s.class_id = any(select id from class) and s.state = 'running'
           and s.lease_until < clock_timestamp() limit $1`,
};
const LOAD_DUE = {
  name: "load-due",
  text: `select ${OPEN_ATTEMPT} from step_run s
         where s.due_at <= clock_timestamp() order by s.due_at limit $1`,
};
const LOAD_SILENT = {
  name: "load-silent",
  text: `select ${OPEN_ATTEMPT}, s.ring, s.class_id as "classId" from step_run s
         where s.class_id = any(select id from class) and s.state = 'queued'
           and s.queued_at < clock_timestamp() - $2 * interval '1 millisecond' limit $1`,
};

export const loadExpired = (db: Queryable, limit: number): Promise<OpenAttempt[]> =>
  db.query<OpenAttempt & Row>(LOAD_EXPIRED, [limit]);
export const loadDue = (db: Queryable, limit: number): Promise<OpenAttempt[]> =>
  db.query<OpenAttempt & Row>(LOAD_DUE, [limit]);
/** Rung more than `silentMs` ago and still not started. */
export const loadSilent = (
  db: Queryable,
  limit: number,
  silentMs: number,
): Promise<SilentAttempt[]> => db.query<SilentAttempt & Row>(LOAD_SILENT, [limit, silentMs]);

const LOAD_OVERDUE_RUNS = {
  name: "load-overdue-runs",
  text: `select id from run where state = 'running' and deadline_at <= clock_timestamp()
           and cancel_requested_at is null limit $1`,
};
const LOAD_STUCK_RUNS = {
  name: "load-stuck-runs",
  text: `select r.id from run r where r.state = 'running'
           and r.created_at < clock_timestamp() - interval '10 seconds'
           and not exists (select from step_run s where s.run_id = r.id
             and s.state in ('ready', 'queued', 'running', 'retrying')) limit $1`,
};

export const loadOverdueRuns = async (db: Queryable, limit: number): Promise<RunId[]> =>
  (await db.query<{ id: RunId }>(LOAD_OVERDUE_RUNS, [limit])).map((row) => row.id);
/** Running, yet nothing of it is open: can't happen, and is mended where it does. */
export const loadStuckRuns = async (db: Queryable, limit: number): Promise<RunId[]> =>
  (await db.query<{ id: RunId }>(LOAD_STUCK_RUNS, [limit])).map((row) => row.id);

// ── what `why` reads ──────────────────────────────────────────────────────────────────────────────

export interface WaitingOfRun {
  readonly step: number;
  readonly item: number;
  readonly state: "ready" | "queued" | "running" | "retrying";
  readonly attempt: number;
  /** Until the row moves by itself; 0 where it need not. */
  readonly dueInMs: number;
}

const LOAD_WAITING_OF = {
  name: "load-waiting-of",
  text: `select step, item, state, attempt, greatest(0, coalesce(extract(epoch from
           due_at - clock_timestamp()) * 1000, 0))::float8 as "dueInMs"
         from step_run where run_id = $1 and state in ('ready', 'queued', 'running', 'retrying')
         order by step, item limit 200`,
};

export const loadWaitingOf = (db: Queryable, runId: RunId): Promise<WaitingOfRun[]> =>
  db.query<WaitingOfRun & Row>(LOAD_WAITING_OF, [runId]);

const LOAD_POOLS = {
  name: "load-pools",
  text: `select project_id as "projectId", name, capacity, used from pool where project_id = $1 order by name`,
};

export const loadPools = (db: Queryable, projectId: string): Promise<PoolState[]> =>
  db.query<PoolState & Row>(LOAD_POOLS, [projectId]);

// ── pools, counted again ──────────────────────────────────────────────────────────────────────────

const LOCK_ALL_POOLS = {
  name: "lock-all-pools",
  text: "select from pool order by project_id, name for no key update",
};
const RECOUNT_POOLS = {
  name: "recount-pools",
  text: `with held as (
           select s.project_id, w.name, sum(w.weight)::int as used from step_run s
           cross join lateral jsonb_to_recordset(s.pools) as w(name text, weight int)
           where s.class_id = any(select id from class) and s.state in ('queued', 'running')
             and s.is_pooled
           group by s.project_id, w.name)
         update pool p set used = coalesce(h.used, 0)
         from pool q left join held h on h.project_id = q.project_id and h.name = q.name
         where q.project_id = p.project_id and q.name = p.name and p.used <> coalesce(h.used, 0)
         returning p.name`,
};

/** Under all pools' locks, which every commit that takes or gives back weight holds to its end. */
export const recountPools = async (tx: Queryable): Promise<number> => {
  await tx.query(LOCK_ALL_POOLS);
  return (await tx.query(RECOUNT_POOLS)).length;
};
