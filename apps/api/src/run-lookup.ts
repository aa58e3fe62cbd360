/**
 * From a request's path to the run and step that it names. The graph of a version never changes, so
 * it is remembered; that a run belongs to the caller's project is asked every time.
 */
import { CoppiceError, type ProjectId, type RunId } from "@coppice/core";
import type { Graph } from "@coppice/pipeline";
import { type Database, getRun, type RunDetailRow } from "@coppice/store";
import { resolveRunId } from "./run-id.ts";
import { graphOf } from "./run-view.ts";

const GRAPHS_MAX = 200;

export interface FoundRun {
  readonly projectId: ProjectId;
  readonly runId: RunId;
  readonly row: RunDetailRow;
  readonly graph: Graph;
}

export interface RunLookup {
  /** @throws CPC_RUN_NOT_FOUND, CPC_RUN_AMBIGUOUS */
  run(projectId: ProjectId, text: string): Promise<FoundRun>;
  /** @throws also CPC_STEP_NOT_FOUND */
  step(projectId: ProjectId, text: string, key: string): Promise<FoundRun & { step: number }>;
}

export const requireStep = (graph: Graph, key: string): number => {
  const index = graph.indexOf.get(key);
  if (index !== undefined) return index;
  throw new CoppiceError("CPC_STEP_NOT_FOUND", {
    detail: `expected one of ${graph.pipeline.steps
      .map((step) => step.key)
      .slice(0, 20)
      .join(", ")}`,
  });
};

export const createRunLookup = (db: Database): RunLookup => {
  const graphs = new Map<string, Graph>();
  const graphFor = (row: RunDetailRow): Graph => {
    const known = graphs.get(row.versionId);
    if (known !== undefined) return known;
    if (graphs.size >= GRAPHS_MAX) graphs.clear();
    const graph = graphOf(row);
    graphs.set(row.versionId, graph);
    return graph;
  };
  const run = async (projectId: ProjectId, text: string): Promise<FoundRun> => {
    const runId = await resolveRunId(db, projectId, text);
    const row = await getRun(db, projectId, runId);
    if (row === undefined) {
      throw new CoppiceError("CPC_RUN_NOT_FOUND", { detail: `Received: ${JSON.stringify(text)}` });
    }
    return { projectId, runId, row, graph: graphFor(row) };
  };
  return {
    run,
    step: async (projectId, text, key) => {
      const found = await run(projectId, text);
      return { ...found, step: requireStep(found.graph, key) };
    },
  };
};
