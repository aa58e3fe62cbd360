/**
 * A pipeline's edges, resolved to indices.
 *
 * What must stay true: every upstream index is smaller than the step's own, and the graph is derived
 * from the stored pipeline alone, so that every process that plans a run sees the same one.
 */
import { CoppiceError } from "@coppice/core";

import type { PipelineIr } from "./ir.ts";
import { stepReferences } from "./values.ts";

export interface Graph {
  readonly pipeline: PipelineIr;
  /** By step index: steps it waits for (inputs, map, when, after), ascending. */
  readonly upstream: readonly (readonly number[])[];
  /** By step index: steps that wait for it, ascending. */
  readonly downstream: readonly (readonly number[])[];
  readonly indexOf: ReadonlyMap<string, number>;
  /** Steps that are not `finally`, ascending. */
  readonly ordinary: readonly number[];
  /** Steps that start only when all ordinary ones are final, ascending. */
  readonly finallySteps: readonly number[];
}

/**
 * The graph of a pipeline that `compilePipeline` made, such as one read back from the database.
 * @throws CoppiceError CPC_UNKNOWN_REFERENCE or CPC_PIPELINE_INVALID where it is not such a one
 */
export const buildGraph = (ir: PipelineIr): Graph => {
  const indexOf = new Map(ir.steps.map((step, index) => [step.key, index]));
  const upstream: number[][] = [];
  const downstream: number[][] = ir.steps.map(() => []);
  const ordinary: number[] = [];
  const finallySteps: number[] = [];
  for (const [index, step] of ir.steps.entries()) {
    const before = new Set<number>();
    for (const { key } of stepReferences(step)) {
      const from = indexOf.get(key);
      if (from === undefined) {
        throw new CoppiceError("CPC_UNKNOWN_REFERENCE", {
          detail: `Step "${step.key}" refers to the step "${key}".`,
        });
      }
      if (from >= index) {
        throw new CoppiceError("CPC_PIPELINE_INVALID", {
          detail:
            `Expected steps in topological order. Received: "${step.key}" before "${key}", ` +
            "for which it waits.",
        });
      }
      before.add(from);
    }
    const sorted = [...before].toSorted((left, right) => left - right);
    upstream.push(sorted);
    for (const from of sorted) downstream[from]?.push(index);
    (step.finally ? finallySteps : ordinary).push(index);
  }
  return { pipeline: ir, upstream, downstream, indexOf, ordinary, finallySteps };
};
