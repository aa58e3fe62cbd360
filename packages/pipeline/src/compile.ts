/**
 * From what an author wrote to what a run pins.
 *
 * What must stay true: whatever `compilePipeline` lets through can be planned to its end; everything
 * that is wrong with a pipeline is said here, all at once where possible, by name and place.
 */
import { CoppiceError, isJsonObject } from "@coppice/core";
import type { z } from "zod";

import { didYouMean } from "./did-you-mean.ts";
import { buildGraph, type Graph } from "./graph.ts";
import { type PipelineIr, pipelineSchema, type StepIr } from "./ir.ts";
import { stepReferences, stepSources } from "./values.ts";

interface Problem {
  readonly path: string;
  readonly message: string;
}

const pathText = (path: readonly PropertyKey[]): string =>
  path.reduce<string>((text, key) => {
    if (typeof key === "number") return `${text}[${key}]`;
    return text === "" ? String(key) : `${text}.${String(key)}`;
  }, "");

/** Of a union, the problems of the branch that the value's own `op` chose. */
const flatten = (issue: z.core.$ZodIssue, base: readonly PropertyKey[]): readonly Problem[] => {
  const path = [...base, ...issue.path];
  if (issue.code === "invalid_union") {
    const meant = issue.errors.find(
      (branch) => branch.length > 0 && !branch.some(({ path: inner }) => inner[0] === "op"),
    );
    if (meant !== undefined) return meant.flatMap((inner) => flatten(inner, path));
  }
  return [{ path: pathText(path), message: issue.message }];
};

const invalid = (problems: readonly Problem[]): CoppiceError =>
  new CoppiceError("CPC_PIPELINE_INVALID", {
    detail: problems
      .map(({ path, message }) => (path === "" ? message : `${path}: ${message}`))
      .join("; "),
    data: { problems },
  });

const parse = (input: unknown): PipelineIr => {
  const parsed = pipelineSchema.safeParse(input);
  if (parsed.success) return parsed.data;
  throw invalid(parsed.error.issues.flatMap((issue) => flatten(issue, [])));
};

const requireUniqueKeys = (ir: PipelineIr): void => {
  const seen = new Set<string>();
  for (const { key } of ir.steps) {
    if (seen.has(key)) {
      throw new CoppiceError("CPC_DUPLICATE_ID", {
        detail: `Two steps of the pipeline "${ir.name}" have the key "${key}".`,
        data: { key },
      });
    }
    seen.add(key);
  }
};

const unknownReference = (step: StepIr, place: string, name: string, known: Iterable<string>) => {
  const meant = didYouMean(name, known);
  return {
    text:
      `Step "${step.key}" refers to ${name} in ${place}` +
      (meant === undefined ? "." : `; did you mean ${meant}?`),
    data: { step: step.key, place, reference: name, ...(meant === undefined ? {} : { meant }) },
  };
};

/** The parameters' names, where the schema admits no others. */
const closedParams = (ir: PipelineIr): readonly string[] | undefined => {
  const { properties, additionalProperties, patternProperties } = ir.params;
  if (additionalProperties !== false || patternProperties !== undefined) return undefined;
  return isJsonObject(properties) ? Object.keys(properties) : undefined;
};

const requireKnownReferences = (ir: PipelineIr): void => {
  const keys = new Set(ir.steps.map(({ key }) => key));
  const params = closedParams(ir);
  const unknown = ir.steps.flatMap((step) => [
    ...stepReferences(step)
      .filter(({ key }) => !keys.has(key))
      .map(({ key, place }) => unknownReference(step, place, key, keys)),
    ...stepSources(step).flatMap(({ source, place }) => {
      const name = source.from === "param" ? source.path[0] : undefined;
      if (name === undefined || params === undefined || params.includes(name)) return [];
      const known = params.map((param) => `params.${param}`);
      return [unknownReference(step, place, `params.${name}`, known)];
    }),
  ]);
  if (unknown.length === 0) return;
  throw new CoppiceError("CPC_UNKNOWN_REFERENCE", {
    detail: unknown.map(({ text }) => text).join(" "),
    data: { unknown: unknown.map(({ data }) => data) },
  });
};

const sourceProblems = (step: StepIr): readonly { place: string; message: string }[] =>
  stepSources(step).flatMap(({ source, place }) => {
    if (place === "map.over") {
      if (source.from === "item") {
        return [{ place, message: "an item can't be mapped over by its own step" }];
      }
      if (source.from === "run") return [{ place, message: "run values are not lists" }];
      if (source.from === "literal" && !Array.isArray(source.value)) {
        return [{ place, message: `expected a list. Received: ${JSON.stringify(source.value)}` }];
      }
      return [];
    }
    if (source.from === "item" && place === "when") {
      return [{ place, message: "a condition is judged once per step, before there are items" }];
    }
    if (source.from === "item" && step.map === undefined) {
      return [{ place, message: "only a mapped step has an item" }];
    }
    if (source.from === "run" && source.field === "status" && !step.finally) {
      return [{ place, message: "only a finally step knows the run's status" }];
    }
    return [];
  });

const requireRules = (ir: PipelineIr): void => {
  const finallyKeys = new Set(ir.steps.filter((step) => step.finally).map(({ key }) => key));
  const problems = ir.steps.flatMap((step, index) => {
    const at = (place: string): string => `steps[${index}].${place}`;
    const sources = sourceProblems(step).map(({ place, message }) => ({
      path: at(place),
      message: `step "${step.key}": ${message}`,
    }));
    if (step.finally) return sources;
    const references = stepReferences(step)
      .filter(({ key }) => finallyKeys.has(key))
      .map(({ key, place }) => ({
        path: at(place),
        message: `step "${step.key}" can't wait for "${key}", which runs after all ordinary steps`,
      }));
    return [...sources, ...references];
  });
  if (problems.length > 0) throw invalid(problems);
};

/**
 * The steps with everything upstream first, otherwise in the author's order.
 * @throws CoppiceError CPC_PIPELINE_CYCLE
 */
const sortSteps = (ir: PipelineIr): readonly StepIr[] => {
  const written = new Map(ir.steps.map((step, index) => [step.key, index]));
  const sorted = new Set<StepIr>();
  /** The steps being placed, each waiting for the next. */
  const trail: string[] = [];
  const place = (step: StepIr): void => {
    if (sorted.has(step)) return;
    const start = trail.indexOf(step.key);
    trail.push(step.key);
    if (start >= 0) {
      const circle = trail.slice(start).toReversed();
      throw new CoppiceError("CPC_PIPELINE_CYCLE", {
        detail: `${circle.join(" → ")}.`,
        data: { circle },
      });
    }
    const before = new Set(stepReferences(step).map(({ key }) => written.get(key) ?? 0));
    for (const index of [...before].toSorted((left, right) => left - right)) {
      const upstream = ir.steps[index];
      if (upstream !== undefined) place(upstream);
    }
    trail.pop();
    sorted.add(step);
  };
  for (const step of ir.steps) place(step);
  return [...sorted];
};

/**
 * Checks a pipeline and puts its steps into topological order.
 * @throws CoppiceError CPC_PIPELINE_INVALID, CPC_DUPLICATE_ID, CPC_UNKNOWN_REFERENCE,
 *   CPC_PIPELINE_CYCLE
 */
export const compilePipeline = (
  input: unknown,
): { readonly ir: PipelineIr; readonly graph: Graph } => {
  const parsed = parse(input);
  requireUniqueKeys(parsed);
  requireKnownReferences(parsed);
  requireRules(parsed);
  const ir: PipelineIr = { ...parsed, steps: [...sortSteps(parsed)] };
  return { ir, graph: buildGraph(ir) };
};
