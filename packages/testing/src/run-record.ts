/** All that the database holds of some runs, as the invariant checker reads it. */
import type { AttemptOutcome, JsonValue, RunId, RunState, StepState } from "@coppice/core";
import { buildGraph, type EncodedSummary, type Graph, pipelineSchema } from "@coppice/pipeline";
import type { Queryable, Row } from "@coppice/store";
import { groupBy } from "./group-by.ts";

export interface StepRunRecord {
  readonly step: number;
  readonly item: number;
  readonly state: StepState;
  readonly attempt: number;
  readonly failed: number;
  readonly lost: number;
  readonly output: JsonValue | null;
  readonly errorCode: string | null;
}

export interface AttemptRecord {
  readonly step: number;
  readonly item: number;
  readonly attempt: number;
  readonly outcome: AttemptOutcome;
  readonly lease: string | null;
}

export interface ArtifactRecord {
  readonly step: number;
  readonly item: number;
  readonly attempt: number;
  readonly name: string;
  readonly sha256: string;
}

export interface Change {
  readonly run?: string;
  readonly step?: number;
  readonly item?: number;
  readonly state?: StepState;
  readonly attempt?: number;
}

/** The changes of one commit. */
export interface EventRecord {
  readonly firstSeq: number;
  readonly lastSeq: number;
  readonly changes: readonly Change[];
}

export interface RunRecord {
  readonly id: RunId;
  readonly projectId: string;
  readonly state: RunState;
  readonly graph: Graph;
  readonly summaries: readonly EncodedSummary[];
  readonly nextSeq: number;
  readonly isCancelled: boolean;
  readonly stepRuns: readonly StepRunRecord[];
  readonly attempts: readonly AttemptRecord[];
  readonly artifacts: readonly ArtifactRecord[];
  readonly events: readonly EventRecord[];
}

const PAGE = 200;
const FIRST_ID = "00000000-0000-0000-0000-000000000000";

interface Head {
  id: RunId;
  projectId: string;
  versionId: string;
  state: RunState;
  summaries: EncodedSummary[];
  nextSeq: number;
  isCancelled: boolean;
}

type OfRun<T> = T & Row & { readonly runId: RunId };

const byRun = <T extends { readonly runId: RunId }>(rows: readonly T[]): ReadonlyMap<RunId, T[]> =>
  groupBy(rows, (row) => row.runId);

/** All runs, a page at a time, in the order of their ids. */
export async function* readRunRecords(db: Queryable): AsyncGenerator<RunRecord> {
  const graphs = new Map<string, Graph>();
  let after: string = FIRST_ID;
  for (;;) {
    const heads = await db.query<Head & Row>(
      `select id, project_id as "projectId", pipeline_version_id as "versionId", state, summaries,
         next_seq as "nextSeq", cancel_requested_at is not null as "isCancelled"
       from run where id > $1 order by id limit ${PAGE}`,
      [after],
    );
    const last = heads.at(-1);
    if (last === undefined) return;
    after = last.id;
    await readGraphs(db, graphs, heads);
    yield* toRecords(db, graphs, heads);
  }
}

const readGraphs = async (
  db: Queryable,
  graphs: Map<string, Graph>,
  heads: readonly Head[],
): Promise<void> => {
  const missing = [...new Set(heads.map((head) => head.versionId))].filter((id) => !graphs.has(id));
  if (missing.length === 0) return;
  const versions = await db.query<{ id: string; ir: unknown }>(
    "select id, ir from pipeline_version where id = any($1::uuid[])",
    [missing],
  );
  for (const { id, ir } of versions) graphs.set(id, buildGraph(pipelineSchema.parse(ir)));
};

async function* toRecords(
  db: Queryable,
  graphs: ReadonlyMap<string, Graph>,
  heads: readonly Head[],
): AsyncGenerator<RunRecord> {
  const ids = [heads.map((head) => head.id)];
  const stepRuns = await db.query<OfRun<StepRunRecord>>(
    `select run_id as "runId", step, item, state, attempt, failed, lost, output,
       error->>'code' as "errorCode" from step_run where run_id = any($1::uuid[])
     order by run_id, step, item`,
    ids,
  );
  const attempts = await db.query<OfRun<AttemptRecord>>(
    `select run_id as "runId", step, item, attempt, outcome, lease_token as lease from attempt
     where run_id = any($1::uuid[]) order by run_id, step, item, attempt`,
    ids,
  );
  const artifacts = await db.query<OfRun<ArtifactRecord>>(
    `select run_id as "runId", step, item, attempt, name, sha256 from artifact_ref
     where run_id = any($1::uuid[])`,
    ids,
  );
  const events = await db.query<OfRun<EventRecord>>(
    `select run_id as "runId", first_seq as "firstSeq", last_seq as "lastSeq", changes
     from run_event where run_id = any($1::uuid[]) order by run_id, first_seq`,
    ids,
  );
  const parts = [byRun(stepRuns), byRun(attempts), byRun(artifacts), byRun(events)] as const;
  for (const { versionId, ...head } of heads) {
    const graph = graphs.get(versionId);
    if (graph === undefined) throw new Error(`run ${head.id} has a version that does not exist`);
    yield {
      ...head,
      graph,
      stepRuns: parts[0].get(head.id) ?? [],
      attempts: parts[1].get(head.id) ?? [],
      artifacts: parts[2].get(head.id) ?? [],
      events: parts[3].get(head.id) ?? [],
    };
  }
}
