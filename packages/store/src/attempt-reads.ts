/**
 * What attempts left behind, as people read it: logs, metrics, artifacts, outputs. Everything takes
 * the project's id and answers only about that project.
 */
import type { AttemptRef, JsonObject, JsonValue, ProjectId, RunId } from "@coppice/core";

import type { Queryable, Row } from "./client.ts";

const attemptValues = (projectId: ProjectId, ref: AttemptRef): readonly unknown[] => [
  projectId,
  ref.runId,
  ref.step,
  ref.item,
  ref.attempt,
];
const OF_ATTEMPT = `project_id = $1 and run_id = $2 and step = $3 and item = $4 and attempt = $5`;

export interface LogReadRow {
  readonly offset: number;
  readonly sizeBytes: number;
  readonly text: string;
}

const LIST_LOGS = {
  name: "list-logs",
  text: `select byte_offset as "offset", size_bytes as "sizeBytes", body as text from log_chunk
         where ${OF_ATTEMPT} and byte_offset + size_bytes > $6 order by byte_offset limit $7`,
};

/** Chunks that hold bytes after the offset; the first may begin before it. */
export const listLogs = (
  db: Queryable,
  projectId: ProjectId,
  ref: AttemptRef,
  offset: number,
  limit: number,
): Promise<LogReadRow[]> =>
  db.query<LogReadRow & Row>(LIST_LOGS, [...attemptValues(projectId, ref), offset, limit]);

export interface MetricReadRow {
  readonly key: string;
  readonly step: number;
  /** NaN and infinities are what PostgreSQL's driver makes of them: JavaScript's own. */
  readonly value: number;
  readonly at: Date;
}

const LIST_METRICS = {
  name: "list-metrics",
  text: `select key, metric_step as step, value, at from metric
         where ${OF_ATTEMPT} and ($6::text is null or key = $6)
           and ($7::text is null or (key, metric_step) > ($7, $8::bigint))
         order by key, metric_step limit $9`,
};

export const listMetrics = (
  db: Queryable,
  projectId: ProjectId,
  ref: AttemptRef,
  filter: {
    readonly key: string | null;
    readonly after: { readonly key: string; readonly step: number } | null;
    readonly limit: number;
  },
): Promise<MetricReadRow[]> =>
  db.query<MetricReadRow & Row>(LIST_METRICS, [
    ...attemptValues(projectId, ref),
    filter.key,
    filter.after?.key ?? null,
    filter.after?.step ?? null,
    filter.limit,
  ]);

/** A place in the order (step, item, name). */
export interface ItemCursor {
  readonly step: number;
  readonly item: number;
  readonly name: string;
}

export interface ArtifactReadRow {
  readonly step: number;
  readonly item: number;
  readonly attempt: number;
  readonly name: string;
  readonly kind: string;
  readonly sha256: string;
  readonly sizeBytes: number;
  readonly metadata: JsonObject;
  readonly createdAt: Date;
}

const LIST_ARTIFACTS = {
  name: "list-artifacts",
  text: `select step, item, attempt, name, kind, sha256, size_bytes as "sizeBytes", metadata,
           created_at as "createdAt" from artifact_ref
         where project_id = $1 and run_id = $2 and ($3::smallint is null or step = $3)
           and ($4::int is null or item = $4)
           and ($5::smallint is null or (step, item, name) > ($5, $6::int, $7::text))
         order by step, item, name limit $8`,
};

export const listArtifacts = (
  db: Queryable,
  projectId: ProjectId,
  runId: RunId,
  filter: {
    readonly step: number | null;
    readonly item: number | null;
    readonly after: ItemCursor | null;
    readonly limit: number;
  },
): Promise<ArtifactReadRow[]> =>
  db.query<ArtifactReadRow & Row>(LIST_ARTIFACTS, [
    projectId,
    runId,
    filter.step,
    filter.item,
    filter.after?.step ?? null,
    filter.after?.item ?? null,
    filter.after?.name ?? null,
    filter.limit,
  ]);

export interface OutputReadRow {
  readonly step: number;
  readonly item: number;
  readonly name: string | null;
  readonly output: JsonValue | null;
}

const LIST_OUTPUTS = {
  name: "list-outputs",
  text: `select step, item, name, output from step_run
         where project_id = $1 and run_id = $2 and state = 'succeeded'
           and ($3::smallint is null or step = $3)
           and ($4::smallint is null or (step, item) > ($4, $5::int))
         order by step, item limit $6`,
};

export const listOutputs = (
  db: Queryable,
  projectId: ProjectId,
  runId: RunId,
  filter: {
    readonly step: number | null;
    readonly after: Pick<ItemCursor, "step" | "item"> | null;
    readonly limit: number;
  },
): Promise<OutputReadRow[]> =>
  db.query<OutputReadRow & Row>(LIST_OUTPUTS, [
    projectId,
    runId,
    filter.step,
    filter.after?.step ?? null,
    filter.after?.item ?? null,
    filter.limit,
  ]);

const HAS_REFERENCE = {
  name: "has-artifact-reference",
  text: `select exists (select from artifact_ref where project_id = $1 and sha256 = $2) as found`,
};
const IS_REACHABLE = {
  name: "is-artifact-reachable",
  text: `select exists (select from artifact_ref where project_id = $1 and sha256 = $2)
           or exists (select from artifact_upload where project_id = $1 and sha256 = $2) as found`,
};
const isFound = (rows: readonly { readonly found: boolean }[]): boolean => rows[0]?.found === true;

/** Whether a committed outcome of the project refers to these bytes. */
export const hasArtifactReference = async (
  db: Queryable,
  projectId: ProjectId,
  sha256: string,
): Promise<boolean> =>
  isFound(await db.query<{ found: boolean }>(HAS_REFERENCE, [projectId, sha256]));

/** As above, or uploaded by an attempt of the project: checkpoints are never more than that. */
export const isArtifactReachable = async (
  db: Queryable,
  projectId: ProjectId,
  sha256: string,
): Promise<boolean> =>
  isFound(await db.query<{ found: boolean }>(IS_REACHABLE, [projectId, sha256]));

const INSERT_UPLOAD = {
  name: "insert-artifact-upload",
  text: `insert into artifact_upload (project_id, sha256, size_bytes) values ($1, $2, $3)
         on conflict (project_id, sha256) do update set at = clock_timestamp()`,
};

/** After the bytes are in the store; sent again, it makes the upload young again. */
export const insertArtifactUpload = async (
  db: Queryable,
  projectId: ProjectId,
  sha256: string,
  sizeBytes: number,
): Promise<void> => {
  await db.query(INSERT_UPLOAD, [projectId, sha256, sizeBytes]);
};
