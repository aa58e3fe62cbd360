/**
 * What attempts leave behind: outputs of step runs and references to artifacts.
 */
import type { JsonValue, ProjectId, RunId, StepRunRef, StepState } from "@coppice/core";

import type { Queryable, Row } from "./client.ts";

export interface NewArtifactRef {
  readonly runId: RunId;
  readonly step: number;
  readonly item: number;
  readonly attempt: number;
  readonly name: string;
  readonly projectId: ProjectId;
  readonly sha256: string;
  readonly sizeBytes: number;
  readonly kind: string;
  readonly metadata: string;
}

const INSERT_ARTIFACT_REFS = {
  name: "insert-artifact-refs",
  text: `insert into artifact_ref (run_id, step, item, attempt, name, project_id, sha256, size_bytes, kind,
           metadata)
         select run_id, step, item, attempt, name, project_id, sha256, size_bytes, kind, metadata::jsonb
         from unnest($1::uuid[], $2::smallint[], $3::int[], $4::smallint[], $5::text[], $6::uuid[],
           $7::text[], $8::bigint[], $9::text[], $10::text[])
           as u(run_id, step, item, attempt, name, project_id, sha256, size_bytes, kind, metadata)
         on conflict (run_id, step, item, name) do nothing`,
};

export const insertArtifactRefs = async (
  tx: Queryable,
  refs: readonly NewArtifactRef[],
): Promise<void> => {
  if (refs.length === 0) return;
  await tx.query(INSERT_ARTIFACT_REFS, [
    refs.map((ref) => ref.runId),
    refs.map((ref) => ref.step),
    refs.map((ref) => ref.item),
    refs.map((ref) => ref.attempt),
    refs.map((ref) => ref.name),
    refs.map((ref) => ref.projectId),
    refs.map((ref) => ref.sha256),
    refs.map((ref) => ref.sizeBytes),
    refs.map((ref) => ref.kind),
    refs.map((ref) => ref.metadata),
  ]);
};

const LOAD_UPLOADED = {
  name: "load-uploaded",
  text: `select u.project_id as "projectId", u.sha256
         from unnest($1::uuid[], $2::text[]) as u(project_id, sha256)
         where exists (select from artifact_upload a
                       where a.project_id = u.project_id and a.sha256 = u.sha256)
            or exists (select from artifact_ref r
                       where r.project_id = u.project_id and r.sha256 = u.sha256)`,
};

/** Which of these digests the project has bytes for. */
export const loadUploaded = async (
  tx: Queryable,
  digests: readonly { readonly projectId: ProjectId; readonly sha256: string }[],
): Promise<ReadonlySet<string>> =>
  digests.length === 0
    ? new Set()
    : new Set(
        (
          await tx.query<{ projectId: string; sha256: string }>(LOAD_UPLOADED, [
            digests.map((digest) => digest.projectId),
            digests.map((digest) => digest.sha256),
          ])
        ).map((row) => `${row.projectId}/${row.sha256}`),
      );

const LOAD_OUTPUTS = {
  name: "load-outputs",
  text: `select s.run_id as "runId", s.step, s.item, s.state, s.output
         from unnest($1::uuid[], $2::smallint[]) as u(run_id, step)
         join step_run s on s.run_id = u.run_id and s.step = u.step
         order by s.run_id, s.step, s.item`,
};

export interface StoredOutput {
  readonly runId: RunId;
  readonly step: number;
  readonly item: number;
  readonly state: StepState;
  readonly output: JsonValue | null;
}

/** Outputs of all items of these steps, in order. */
export const loadOutputs = (
  db: Queryable,
  steps: readonly { readonly runId: RunId; readonly step: number }[],
): Promise<StoredOutput[]> =>
  db.query<StoredOutput & Row>(LOAD_OUTPUTS, [
    steps.map((ref) => ref.runId),
    steps.map((ref) => ref.step),
  ]);

const LOAD_OUTPUT_ITEMS = {
  name: "load-output-items",
  text: `select s.run_id as "runId", s.step, s.item, s.state, s.output
         from unnest($1::uuid[], $2::smallint[], $3::int[]) as u(run_id, step, item)
         join step_run s on s.run_id = u.run_id and s.step = u.step and s.item = u.item`,
};

/** Outputs of just these items. */
export const loadOutputItems = (
  db: Queryable,
  items: readonly StepRunRef[],
): Promise<StoredOutput[]> =>
  items.length === 0
    ? Promise.resolve([])
    : db.query<StoredOutput & Row>(LOAD_OUTPUT_ITEMS, [
        items.map((ref) => ref.runId),
        items.map((ref) => ref.step),
        items.map((ref) => ref.item),
      ]);

const LOAD_OUTPUTS_PAGE = {
  name: "load-outputs-page",
  text: `select run_id as "runId", step, item, state, output from step_run
         where run_id = $1 and step = $2 and item >= $3 order by item limit $4`,
};

/** A page of one mapped step's outputs, for joins too long for one answer. */
export const loadOutputsPage = (
  db: Queryable,
  runId: RunId,
  step: number,
  fromItem: number,
  limit: number,
): Promise<StoredOutput[]> =>
  db.query<StoredOutput & Row>(LOAD_OUTPUTS_PAGE, [runId, step, fromItem, limit]);
