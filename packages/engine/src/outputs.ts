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

export interface WantedOutputs {
  readonly runId: RunId;
  readonly step: number;
  /** Whether it may be remembered. */
  readonly isFinal: boolean;
}

export type ReadOutputs = (runId: RunId, step: number) => StepOutputs;

export interface OutputCache {
  /** Inside a commit, through its own transaction. */
  load(tx: Queryable, wanted: readonly WantedOutputs[]): Promise<ReadOutputs>;
  /** Outside of one: what is asked for in one turn of the event loop is read at once. */
  loadTogether(wanted: readonly WantedOutputs[]): Promise<ReadOutputs>;
  /** A plain step's output that has just been committed: its successors ask for it next. */
  remember(runId: RunId, step: number, output: JsonValue): void;
}

const CACHED_STEPS_MAX = 10_000;
/** Lists of many items are read again rather than kept. */
const CACHED_ITEMS_MAX = 100;
/** With the number of steps it bounds the cache: what is larger is read again, too. */
const CACHED_CHARS_MAX = 8 * 1024;

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

export const openOutputCache = (db: Queryable): OutputCache => {
  const cache = new BoundedMap<string, StepOutputs>(CACHED_STEPS_MAX);

  const load = async (from: Queryable, wanted: readonly WantedOutputs[]): Promise<ReadOutputs> => {
    const found = new Map<string, StepOutputs>();
    const missing = new Map<string, WantedOutputs>();
    for (const ref of wanted) {
      const key = keyOf(ref.runId, ref.step);
      const known = cache.get(key);
      if (known === undefined) missing.set(key, ref);
      else found.set(key, known);
    }
    if (missing.size > 0) {
      const loaded = collect(await loadOutputs(from, [...missing.values()]));
      for (const [key, ref] of missing) {
        const outputs = loaded.get(key) ?? [];
        found.set(key, outputs);
        if (ref.isFinal && isSmall(outputs)) cache.set(key, outputs);
      }
    }
    return (runId, step) => found.get(keyOf(runId, step)) ?? [];
  };

  let together:
    | { readonly wanted: WantedOutputs[]; readonly read: Promise<ReadOutputs> }
    | undefined;
  return {
    load,
    loadTogether: async (wanted) => {
      if (wanted.length === 0) return () => [];
      if (together === undefined) {
        const all: WantedOutputs[] = [];
        const turn = new Promise<void>((resolve) => setImmediate(resolve));
        const read = turn.then(() => {
          together = undefined;
          return load(db, all);
        });
        together = { wanted: all, read };
      }
      together.wanted.push(...wanted);
      return together.read;
    },
    remember: (runId, step, output) => {
      if (isSmall([output])) cache.set(keyOf(runId, step), [output]);
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
