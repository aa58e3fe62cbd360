/**
 * Outputs of finished steps, as conditions, maps and inputs need them.
 *
 * What must stay true: outputs of the commit at hand come from the working set, all others from the
 * database; a plain step's output never changes once it succeeded, so it may be remembered.
 */
import type { JsonValue, RunId } from "@coppice/core";
import { isFinal, type Located, locate, type StepSummary } from "@coppice/pipeline";
import { loadOutputs, type Queryable, type StoredOutput } from "@coppice/store";

import { BoundedMap, type VersionFacts } from "./facts.ts";

/** By item, in order; undefined where an item has no output. */
export type StepOutputs = readonly (JsonValue | undefined)[];

export interface OutputCache {
  load(
    db: Queryable,
    wanted: readonly { readonly runId: RunId; readonly step: number; readonly isFinal: boolean }[],
  ): Promise<(runId: RunId, step: number) => StepOutputs>;
}

const CACHED_STEPS_MAX = 2000;
/** Lists of many items are read again rather than kept. */
const CACHED_ITEMS_MAX = 100;
/** With the number of steps it bounds the cache: what is larger is read again, too. */
const CACHED_CHARS_MAX = 32 * 1024;

const isSmall = (outputs: StepOutputs): boolean => {
  if (outputs.length > CACHED_ITEMS_MAX) return false;
  let chars = 0;
  for (const output of outputs) {
    chars += output === undefined ? 0 : JSON.stringify(output).length;
    if (chars > CACHED_CHARS_MAX) return false;
  }
  return true;
};

const keyOf = (runId: RunId, step: number): string => `${runId}/${step}`;

const collect = (rows: readonly StoredOutput[]): Map<string, (JsonValue | undefined)[]> => {
  const found = new Map<string, (JsonValue | undefined)[]>();
  for (const row of rows) {
    const key = keyOf(row.runId, row.step);
    let outputs = found.get(key);
    if (outputs === undefined) {
      outputs = [];
      found.set(key, outputs);
    }
    outputs[row.item] = row.state === "succeeded" ? (row.output ?? null) : undefined;
  }
  return found;
};

export const openOutputCache = (): OutputCache => {
  const cache = new BoundedMap<string, StepOutputs>(CACHED_STEPS_MAX);
  return {
    load: async (db, wanted) => {
      const found = new Map<string, StepOutputs>();
      const missing = new Map<string, (typeof wanted)[number]>();
      for (const ref of wanted) {
        const key = keyOf(ref.runId, ref.step);
        const known = cache.get(key);
        if (known === undefined) missing.set(key, ref);
        else found.set(key, known);
      }
      if (missing.size > 0) {
        const loaded = collect(await loadOutputs(db, [...missing.values()]));
        for (const [key, ref] of missing) {
          const outputs = loaded.get(key) ?? [];
          found.set(key, outputs);
          if (ref.isFinal && isSmall(outputs)) cache.set(key, outputs);
        }
      }
      return (runId, step) => found.get(keyOf(runId, step)) ?? [];
    },
  };
};

/**
 * The value at the path of a step's output; for a mapped step the list of all items' values, null
 * where an item has none.
 */
export const locateOutput = (
  version: VersionFacts,
  step: number,
  outputs: StepOutputs,
  path: readonly string[],
): Located => {
  if (version.graph.pipeline.steps[step]?.map === undefined) return locate(outputs[0], path);
  const values: JsonValue[] = [];
  for (let item = 0; item < outputs.length; item += 1) {
    const located = locate(outputs[item], path);
    values.push(located.kind === "value" ? located.value : spilledPlaceholder(located));
  }
  return { kind: "value", value: values };
};

/** An item's value that lies elsewhere stays a placeholder inside the list: the worker follows it. */
const spilledPlaceholder = (located: Located): JsonValue =>
  located.kind === "spilled" && located.path.length === 0
    ? { $spilled: { ...located.spilled } }
    : null;

/** Whether a step's outputs are complete and can be remembered. */
export const isSettled = (summary: StepSummary | undefined): boolean =>
  summary !== undefined && isFinal(summary);
