/**
 * What can be run and by whom: bundles, pipeline versions, pools; and what the fleet looks like.
 *
 * What must stay true: a version's number is given once and its content never changes; the same
 * content of the same name gets the version it has. Deployments of one project go one at a time.
 */
import type { PipelineVersionId, ProjectId, WorkerId } from "@coppice/core";

import type { Queryable, Row } from "./client.ts";

const INSERT_BUNDLE = {
  name: "insert-bundle",
  text: `insert into bundle (project_id, digest, size_bytes, manifest) values ($1, $2, $3, '{}')
         on conflict do nothing`,
};
const HAS_BUNDLE = {
  name: "has-bundle",
  text: `select exists (select from bundle where project_id = $1 and digest = $2) as found`,
};
const SET_MANIFEST = {
  name: "set-bundle-manifest",
  text: `update bundle set manifest = $3::jsonb
         where project_id = $1 and digest = $2 and manifest = '{}'`,
};

export const insertBundle = async (
  db: Queryable,
  projectId: ProjectId,
  digest: string,
  sizeBytes: number,
): Promise<void> => {
  await db.query(INSERT_BUNDLE, [projectId, digest, sizeBytes]);
};

export const hasBundle = async (
  db: Queryable,
  projectId: ProjectId,
  digest: string,
): Promise<boolean> =>
  (await db.query<{ found: boolean }>(HAS_BUNDLE, [projectId, digest]))[0]?.found === true;

/** Kept as it was first told; the bundle's own bytes hold the manifest that counts. */
export const setBundleManifest = async (
  db: Queryable,
  projectId: ProjectId,
  digest: string,
  manifest: unknown,
): Promise<void> => {
  await db.query(SET_MANIFEST, [projectId, digest, JSON.stringify(manifest)]);
};

export interface NewVersion {
  readonly id: PipelineVersionId;
  readonly name: string;
  readonly ir: unknown;
  readonly irSha256: string;
}

export interface DeployedVersion {
  readonly id: PipelineVersionId;
  readonly name: string;
  readonly version: number;
  readonly isNew: boolean;
}

const LOCK_PROJECT = {
  name: "lock-project",
  text: `select from project where id = $1 for no key update`,
};
const FIND_CONTENT = {
  name: "find-version-by-content",
  text: `select id, version from pipeline_version
         where project_id = $1 and name = $2 and ir_sha256 = $3 and bundle_digest = $4`,
};
const INSERT_VERSION = {
  name: "insert-pipeline-version",
  text: `insert into pipeline_version (id, project_id, name, version, ir, ir_sha256, bundle_digest)
         select $1, $2, $3, coalesce(max(version), 0) + 1, $4::jsonb, $5, $6 from pipeline_version
         where project_id = $2 and name = $3 returning id, version`,
};

interface IdAndVersion extends Row {
  id: PipelineVersionId;
  version: number;
}

/** @param tx a transaction: all of the versions or none */
export const deployVersions = async (
  tx: Queryable,
  projectId: ProjectId,
  bundleDigest: string,
  versions: readonly NewVersion[],
): Promise<DeployedVersion[]> => {
  await tx.query(LOCK_PROJECT, [projectId]);
  const deployed: DeployedVersion[] = [];
  for (const { id, name, ir, irSha256 } of versions) {
    const content = [projectId, name, irSha256, bundleDigest];
    const [found] = await tx.query<IdAndVersion>(FIND_CONTENT, content);
    const [added] =
      found === undefined
        ? await tx.query<IdAndVersion>(INSERT_VERSION, [
            id,
            projectId,
            name,
            JSON.stringify(ir),
            irSha256,
            bundleDigest,
          ])
        : [];
    const row = found ?? added;
    if (row === undefined) throw new Error("expected the version's row");
    deployed.push({ id: row.id, name, version: row.version, isNew: found === undefined });
  }
  return deployed;
};

export interface PipelineRow {
  readonly id: PipelineVersionId;
  readonly name: string;
  readonly version: number;
  readonly ir: unknown;
  readonly bundleDigest: string;
  readonly createdAt: Date;
}

const VERSION = `id, name, version, ir, bundle_digest as "bundleDigest", created_at as "createdAt"`;
const LIST_PIPELINES = {
  name: "list-pipelines",
  text: `select distinct on (name) ${VERSION} from pipeline_version
         where project_id = $1 order by name, version desc`,
};
const FIND_VERSION = {
  name: "find-pipeline-version",
  text: `select ${VERSION} from pipeline_version
         where project_id = $1 and name = $2 and ($3::int is null or version = $3)
         order by version desc limit 1`,
};
const FIND_VERSION_ID = {
  name: "find-pipeline-version-id",
  text: FIND_VERSION.text.replace(VERSION, "id, version"),
};
const LIST_VERSIONS = {
  name: "list-pipeline-versions",
  text: `select id, version, bundle_digest as "bundleDigest", created_at as "createdAt"
         from pipeline_version where project_id = $1 and name = $2 order by version desc limit 100`,
};

/** The newest version of each. */
export const listPipelines = (db: Queryable, projectId: ProjectId): Promise<PipelineRow[]> =>
  db.query<PipelineRow & Row>(LIST_PIPELINES, [projectId]);

/** @param version null: the newest */
export const findVersion = async (
  db: Queryable,
  projectId: ProjectId,
  name: string,
  version: number | null,
): Promise<PipelineRow | undefined> =>
  (await db.query<PipelineRow & Row>(FIND_VERSION, [projectId, name, version]))[0];

/** As above without the definition, which may be large. */
export const findVersionId = async (
  db: Queryable,
  projectId: ProjectId,
  name: string,
  version: number | null,
): Promise<Pick<PipelineRow, "id" | "version"> | undefined> =>
  (await db.query<IdAndVersion>(FIND_VERSION_ID, [projectId, name, version]))[0];

export type VersionRow = Pick<PipelineRow, "id" | "version" | "bundleDigest" | "createdAt">;

export const listVersions = (
  db: Queryable,
  projectId: ProjectId,
  name: string,
): Promise<VersionRow[]> => db.query<VersionRow & Row>(LIST_VERSIONS, [projectId, name]);

export interface WorkerReadRow {
  readonly id: WorkerId;
  readonly name: string;
  readonly host: string;
  readonly version: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly slots: number;
  readonly freeSlots: number;
  readonly gpus: number;
  readonly freeGpus: number;
  readonly isAlive: boolean;
  readonly isDraining: boolean;
  readonly clockSkewMs: number;
  readonly registeredAt: Date;
  readonly seenAt: Date;
}

const LIST_WORKERS = {
  name: "list-workers",
  text: `select id, name, host, version, labels, slots, free_slots as "freeSlots", gpus,
           free_gpus as "freeGpus",
           seen_at > clock_timestamp() - $1 * interval '1 millisecond' as "isAlive",
           is_draining as "isDraining", clock_skew_ms as "clockSkewMs",
           registered_at as "registeredAt", seen_at as "seenAt"
         from worker where seen_at > clock_timestamp() - interval '1 day'
         order by "isAlive" desc, name, id`,
};

/** @param aliveMs how long a worker may be silent and still count as alive */
export const listWorkers = (db: Queryable, aliveMs: number): Promise<WorkerReadRow[]> =>
  db.query<WorkerReadRow & Row>(LIST_WORKERS, [aliveMs]);

const WORKER_OF_TOKEN = {
  name: "worker-of-token",
  text: `select token_id as "tokenId" from worker where id = $1`,
};

/** The token that the worker registered with. */
export const findWorkerToken = async (
  db: Queryable,
  workerId: string,
): Promise<string | undefined> =>
  (await db.query<{ tokenId: string }>(WORKER_OF_TOKEN, [workerId]))[0]?.tokenId;

export interface ClassCounts {
  readonly key: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly gpu: number;
  readonly ready: number;
  readonly queued: number;
  readonly running: number;
  readonly retrying: number;
  readonly oldestReadySeconds: number;
}

const COUNT_CLASSES = {
  name: "count-classes",
  text: `select c.key, c.labels, c.gpu,
           count(*) filter (where s.state = 'ready')::int as ready,
           count(*) filter (where s.state = 'queued')::int as queued,
           count(*) filter (where s.state = 'running')::int as running,
           count(*) filter (where s.state = 'retrying')::int as retrying,
           coalesce(extract(epoch from clock_timestamp()
             - min(s.ready_at) filter (where s.state = 'ready')), 0)::float8 as "oldestReadySeconds"
         from class c left join step_run s on s.class_id = c.id
           and s.state in ('ready', 'queued', 'running', 'retrying')
         group by c.id order by c.id`,
};

/** What waits and runs per class, over all projects. */
export const countClasses = (db: Queryable): Promise<ClassCounts[]> =>
  db.query<ClassCounts & Row>(COUNT_CLASSES);

export interface PoolRow {
  readonly name: string;
  readonly capacity: number;
  readonly used: number;
}

const LIST_POOLS = {
  name: "list-pools",
  text: `select name, capacity, used from pool where project_id = $1
           and ($2::text is null or name = $2) order by name`,
};
const PUT_POOL = {
  name: "put-pool",
  text: `insert into pool (project_id, name, capacity) values ($1, $2, $3)
         on conflict (project_id, name) do update set capacity = excluded.capacity
         returning name, capacity, used`,
};

/** @param name null: all of them */
export const listPools = (
  db: Queryable,
  projectId: ProjectId,
  name: string | null,
): Promise<PoolRow[]> => db.query<PoolRow & Row>(LIST_POOLS, [projectId, name]);

export const putPool = async (
  db: Queryable,
  projectId: ProjectId,
  name: string,
  capacity: number,
): Promise<PoolRow> => {
  const [row] = await db.query<PoolRow & Row>(PUT_POOL, [projectId, name, capacity]);
  if (row === undefined) throw new Error("expected the pool's row");
  return row;
};
