/**
 * A pipeline's definition: the graph, written as ordinary code that is run once, at definition.
 *
 * What must stay true: steps are declared before they are referred to, so that the IR stands in
 * topological order by construction; the result is plain data (`ir`) plus the steps' definitions by
 * key, which is all that the worker's child needs.
 */
import { CoppiceError, parseDurationMs, type RunState } from "@coppice/core";
import { compilePipeline, type PipelineIr, type TriggerRule } from "@coppice/pipeline";
import { z } from "zod";

import { defineSite, siteOf } from "./definition-site.ts";
import type { StepDefinition } from "./define-step.ts";
import { makeRef, type Ref } from "./ref.ts";
import { compileStep } from "./compile-step.ts";
import type {
  InputMode,
  InputSources,
  MapOptions,
  MappedStepHandle,
  OnlyInputs,
  StepHandle,
  StepOptions,
  WithOption,
} from "./step-options.ts";

export interface DeclareStep {
  /** One step run per item of `map.over`. */
  <
    In extends z.ZodObject,
    Out extends z.ZodType,
    Item,
    Given extends InputSources<In, InputMode<Rule, Finally>>,
    LooseItem = Item,
    Rule extends TriggerRule | undefined = undefined,
    Finally extends boolean = false,
  >(
    key: string,
    definition: StepDefinition<In, Out>,
    options: StepOptions<Rule, Finally> & {
      readonly map: MapOptions<Item, LooseItem>;
      readonly with: (scope: {
        readonly item: Ref<Item, LooseItem>;
      }) => Given & OnlyInputs<Given, In>;
    },
  ): MappedStepHandle<z.output<Out>>;
  <
    In extends z.ZodObject,
    Out extends z.ZodType,
    Rule extends TriggerRule | undefined = undefined,
    Finally extends boolean = false,
  >(
    key: string,
    definition: StepDefinition<In, Out>,
    ...options: Record<never, never> extends WithOption<In, "strict">
      ? [options?: StepOptions<Rule, Finally> & WithOption<In, InputMode<Rule, Finally>>]
      : [options: StepOptions<Rule, Finally> & WithOption<In, InputMode<Rule, Finally>>]
  ): StepHandle<z.output<Out>>;
}

export interface PipelineScope<Params> {
  readonly params: Ref<Params>;
  /** Facts of the run; the status is final only for `finally` steps. */
  readonly run: { readonly id: Ref<string>; readonly status: Ref<RunState> };
  readonly step: DeclareStep;
}

export interface PipelineSpec<Params extends z.ZodObject> {
  /** Lower case, digits and hyphens; unique in the project. */
  readonly name: string;
  readonly description?: string;
  readonly params?: Params;
  /** The whole run's time: "10m". */
  readonly timeout?: string | number;
  readonly steps: (scope: PipelineScope<z.output<Params>>) => void;
}

export interface PipelineDefinition {
  readonly name: string;
  readonly ir: PipelineIr;
  readonly params: z.ZodObject;
  /** By key: what a worker's child runs. */
  readonly steps: ReadonlyMap<string, StepDefinition>;
}

/** Unknown parameters are refused: a mistyped name must not pass as a default. */
const paramsSchemaOf = (params: z.ZodObject): Record<string, unknown> => {
  const closed = params._zod.def.catchall === undefined ? params.strict() : params;
  const schema = z.toJSONSchema(closed, { io: "input", target: "draft-2020-12" });
  // `~standard` is a non-enumerable helper of zod's; a copy through JSON leaves data only.
  return JSON.parse(JSON.stringify(schema)) as Record<string, unknown>;
};

const duplicateStep = (pipeline: string, key: string, first: object, second: object) =>
  new CoppiceError("CPC_DUPLICATE_ID", {
    detail: `pipeline ${pipeline} has two steps "${key}": ${siteOf(first)} and ${siteOf(second)}`,
    data: { pipeline, step: key },
  });

const collectSteps = (name: string, declare: (step: DeclareStep) => void) => {
  const definitions = new Map<string, StepDefinition>();
  const sites = new Map<string, object>();
  const compiled: ReturnType<typeof compileStep>[] = [];
  const step = (key: string, definition: StepDefinition, options: object = {}) => {
    const site = defineSite(step);
    const earlier = sites.get(key);
    if (earlier !== undefined) throw duplicateStep(name, key, earlier, site);
    sites.set(key, site);
    definitions.set(key, definition);
    compiled.push(compileStep(key, definition, options));
    return { key, output: makeRef<object>({ from: "output", step: key, path: [] }) };
  };
  declare(step as unknown as DeclareStep);
  return { definitions, compiled };
};

/**
 * @throws CPC_PIPELINE_INVALID, CPC_PIPELINE_CYCLE, CPC_UNKNOWN_REFERENCE or CPC_DUPLICATE_ID
 */
export const definePipeline = <Params extends z.ZodObject = z.ZodObject<Record<never, never>>>(
  spec: PipelineSpec<Params>,
): PipelineDefinition => {
  const params: z.ZodObject = spec.params ?? z.object({});
  const { definitions, compiled } = collectSteps(spec.name, (step) =>
    spec.steps({
      params: makeRef<Ref<z.output<Params>>>({ from: "param", path: [] }),
      run: {
        id: makeRef<Ref<string>>({ from: "run", field: "id" }),
        status: makeRef<Ref<RunState>>({ from: "run", field: "status" }),
      },
      step,
    }),
  );
  const { ir } = compilePipeline({
    irVersion: 1,
    name: spec.name,
    ...(spec.description === undefined ? {} : { description: spec.description }),
    params: paramsSchemaOf(params) as never,
    steps: compiled,
    ...(spec.timeout === undefined ? {} : { timeoutMs: parseDurationMs(spec.timeout) }),
  });
  return Object.assign(defineSite(definePipeline), {
    name: spec.name,
    ir,
    params,
    steps: definitions,
  });
};
