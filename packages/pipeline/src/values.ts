/**
 * Where a step's values come from: references to other steps, lists to map over, names of items.
 */
import { CoppiceError, type JsonValue, type RunState, toErrorRecord, valueAt } from "@coppice/core";

import type { Graph } from "./graph.ts";
import type { StepIr, ValueSource } from "./ir.ts";
import { locate } from "./placeholders.ts";
import type { Fact } from "./plan.ts";
import type { StepSummary } from "./summary.ts";
import { whenSources } from "./when.ts";

export interface StepReference {
  /** The step that is referred to. */
  readonly key: string;
  /** The place of the reference inside the step: `inputs.table`, `after[0]`, `when`, `map.over`. */
  readonly place: string;
}

/** All that the step reads, with the place where it is written. */
export const stepSources = (
  step: StepIr,
): readonly { readonly source: ValueSource; readonly place: string }[] => [
  ...Object.entries(step.inputs).map(([name, source]) => ({ source, place: `inputs.${name}` })),
  ...(step.map === undefined ? [] : [{ source: step.map.over, place: "map.over" }]),
  ...(step.when === undefined
    ? []
    : whenSources(step.when).map((source) => ({ source, place: "when" }))),
];

/** All steps that must come before this one; a step may appear more than once. */
export const stepReferences = (step: StepIr): readonly StepReference[] => [
  ...stepSources(step).flatMap(({ source, place }) =>
    source.from === "output" ? [{ key: source.step, place }] : [],
  ),
  ...step.after.map((key, index) => ({ key, place: `after[${index}]` })),
];

export type OutputRef = Extract<ValueSource, { readonly from: "output" }>;

/**
 * The outputs that an attempt's inputs are taken from, each (step, path) once. The list that a
 * mapped step's item comes from is not among them: it is `step.map.over`.
 */
export const outputRefs = (step: StepIr): readonly OutputRef[] => {
  const byKey = new Map<string, OutputRef>();
  for (const source of Object.values(step.inputs)) {
    if (source.from === "output") byKey.set(JSON.stringify([source.step, source.path]), source);
  }
  return [...byKey.values()];
};

export interface SourceContext {
  readonly params: JsonValue;
  readonly run: { readonly id: string; readonly status?: RunState };
  /** The item that the attempt stands for, in a mapped step. */
  readonly item?: JsonValue;
  /** Of a mapped step: the list of what stands at the path in each item's output. */
  readonly output: (step: string, path: readonly string[]) => JsonValue | undefined;
}

export const resolveSource = (
  source: ValueSource,
  context: SourceContext,
): JsonValue | undefined => {
  switch (source.from) {
    case "literal":
      return source.value;
    case "param":
      return valueAt(context.params, source.path);
    case "output":
      return context.output(source.step, source.path);
    case "item":
      return context.item === undefined ? undefined : valueAt(context.item, source.path);
    case "run":
      return source.field === "id" ? context.run.id : context.run.status;
  }
};

const describe = (value: JsonValue): string => {
  const text = JSON.stringify(value);
  return text.length <= 60 ? text : `${text.slice(0, 57)}…`;
};

const mapInvalid = (received: string, hint?: string): Fact<number> => ({
  error: toErrorRecord(
    new CoppiceError("CPC_MAP_INVALID", {
      detail: `Expected a list. Received: ${received}.${hint === undefined ? "" : ` ${hint}`}`,
    }),
  ),
});

/** The length of the list at the path; of a spilled list, the length that its placeholder tells. */
export const lengthOf = (value: JsonValue | undefined, path: readonly string[]): Fact<number> => {
  const where = path.length === 0 ? "" : ` at ${path.join(".")}`;
  const located = locate(value, path);
  if (located.kind === "missing") return mapInvalid(`nothing${where}`);
  if (located.kind === "spilled") {
    if (located.path.length > 0) {
      return mapInvalid(
        `a value that is stored as a file, too large to look for${where.slice(3)} inside`,
        "Let the step return the list as a key of its own.",
      );
    }
    const { length } = located.spilled;
    return length === undefined
      ? mapInvalid(`a large value${where} that is not a list`)
      : { value: length };
  }
  const list = located.value;
  return Array.isArray(list) ? { value: list.length } : mapInvalid(`${describe(list)}${where}`);
};

/**
 * The length of a step's list where no stored output is needed for it: literals, parameters, and
 * outputs of a mapped step, which give one value per item. Undefined: use `lengthOf` on the output
 * of the step that `map.over` names.
 */
export const knownMapLength = (
  graph: Graph,
  summaries: readonly StepSummary[],
  params: JsonValue,
  step: number,
): Fact<number> | undefined => {
  const over = graph.pipeline.steps[step]?.map?.over;
  if (over === undefined) return undefined;
  if (over.from === "literal") return lengthOf(over.value, []);
  if (over.from === "param") return lengthOf(params, over.path);
  if (over.from !== "output") return mapInvalid(`the source "${over.from}"`);
  const upstream = graph.indexOf.get(over.step) ?? -1;
  if (graph.pipeline.steps[upstream]?.map === undefined) return undefined;
  const summary = summaries[upstream];
  if (summary === undefined || summary.total === null) {
    return mapInvalid(`nothing: the items of "${over.step}" are not known yet`);
  }
  // A mapped step that was settled without running has one row, but no items.
  return { value: summary.isOpen ? summary.total : 0 };
};

export const ITEM_NAME_MAX = 64;

const asName = (value: JsonValue | undefined): string | undefined => {
  if (typeof value === "number") return String(value);
  return typeof value === "string" && value !== "" ? cut(value) : undefined;
};

/** Cuts between characters, never inside one. */
const cut = (text: string): string =>
  text.length <= ITEM_NAME_MAX ? text : Array.from(text).slice(0, ITEM_NAME_MAX).join("");

/** What people call the item: itself where it is text or a number, else what stands at the path. */
export const itemName = (
  item: JsonValue | undefined,
  path: readonly string[],
  index: number,
): string => {
  const named = asName(item) ?? (item === undefined ? undefined : asName(valueAt(item, path)));
  return named ?? String(index);
};
