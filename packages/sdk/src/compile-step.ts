/**
 * One declared step as the IR's step. The types have checked most of it already; what is checked
 * here is what a cast or plain JavaScript would get past them.
 */
import { CoppiceError, parseDurationMs } from "@coppice/core";
import type { PipelineIrInput, TriggerRule, ValueSource } from "@coppice/pipeline";

import type { StepDefinition } from "./define-step.ts";
import { makeRef, type Ref, type StrictRef, sourceOf } from "./ref.ts";
import type {
  Duration,
  MapOptions,
  RetryOptions,
  StepOptions,
  TimeoutOptions,
} from "./step-options.ts";
import { toValueSource } from "./value-source.ts";

type StepIrInput = PipelineIrInput["steps"][number];
type Inputs = Readonly<Record<string, unknown>>;
type Options = StepOptions<TriggerRule | undefined, boolean> & {
  readonly map?: MapOptions<unknown, unknown>;
  readonly with?: Inputs | ((scope: { readonly item: Ref<unknown> }) => Inputs);
};

/** Drops what was not given, so that the IR's defaults apply. */
const given = <T extends object>(fields: { [K in keyof T]: T[K] | undefined }): T =>
  Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as T;

const ms = (duration: Duration | undefined): number | undefined =>
  duration === undefined ? undefined : parseDurationMs(duration);

const compileInputs = (key: string, definition: StepDefinition, options: Options) => {
  const values =
    typeof options.with === "function"
      ? options.with({ item: makeRef<Ref<unknown>>({ from: "item", path: [] }) })
      : (options.with ?? {});
  const known = definition.inputs.shape;
  const inputs: Record<string, ValueSource> = {};
  for (const [name, value] of Object.entries(values)) {
    if (value === undefined) continue;
    if (!Object.hasOwn(known, name)) {
      throw new CoppiceError("CPC_PIPELINE_INVALID", {
        detail:
          `step "${key}" is given an input "${name}" that its definition lacks. ` +
          `It has: ${Object.keys(known).join(", ") || "none"}`,
      });
    }
    inputs[name] = toValueSource(value, `step "${key}", input "${name}"`);
  }
  for (const [name, schema] of Object.entries(known)) {
    if (!Object.hasOwn(inputs, name) && schema._zod.optin !== "optional") {
      throw new CoppiceError("CPC_PIPELINE_INVALID", {
        detail: `step "${key}" needs the input "${name}": give it in \`with\``,
      });
    }
  }
  return inputs;
};

const compileMap = (key: string, map: MapOptions<unknown, unknown>): StepIrInput["map"] => {
  const named: StrictRef<string | number> | undefined = map.name?.(
    makeRef<Ref<unknown>>({ from: "item", path: [] }),
  );
  const name = named === undefined ? undefined : sourceOf(named);
  if (name !== undefined && name.from !== "item") {
    throw new CoppiceError("CPC_PIPELINE_INVALID", {
      detail: `step "${key}": map.name must return a field of the item`,
    });
  }
  return given({
    over: toValueSource(map.over, `step "${key}", map.over`),
    concurrency: map.concurrency,
    itemsMax: map.itemsMax,
    name: name === undefined ? undefined : [...name.path],
  });
};

const compileRetry = (retry: RetryOptions): StepIrInput["retry"] =>
  given({
    attemptsMax: retry.attempts,
    lostMax: retry.lost,
    backoffMs: ms(retry.backoff),
    factor: retry.factor,
    backoffMaxMs: ms(retry.backoffMax),
    jitterRatio: retry.jitter,
  });

const compileTimeouts = (timeouts: TimeoutOptions): StepIrInput["timeouts"] =>
  given({
    queuedMs: ms(timeouts.queued),
    runMs: ms(timeouts.run),
    heartbeatMs: ms(timeouts.heartbeat),
    graceMs: ms(timeouts.grace),
  });

const compilePools = (pools: Exclude<Options["pools"], undefined>): StepIrInput["pools"] =>
  (Array.isArray(pools)
    ? (pools as string[]).map((name) => [name, 1] as const)
    : Object.entries(pools)
  ).map(([name, weight]) => ({ name, weight }));

export const compileStep = (key: string, definition: StepDefinition, rest: object): StepIrInput => {
  const options: Options = rest;
  const rule = options.rule ?? (options.finally === true ? "always" : undefined);
  return given<StepIrInput>({
    key,
    description: options.description ?? definition.description,
    inputs: compileInputs(key, definition, options),
    after: options.after?.map((handle) => handle.key),
    rule,
    when: options.when,
    map: options.map === undefined ? undefined : compileMap(key, options.map),
    finally: options.finally,
    resources: options.resources,
    pools: options.pools === undefined ? undefined : compilePools(options.pools),
    priority: options.priority,
    retry: options.retry === undefined ? undefined : compileRetry(options.retry),
    timeouts: options.timeouts === undefined ? undefined : compileTimeouts(options.timeouts),
    isolation: options.isolation,
    exclusive: options.exclusive,
    memoryMb: options.memoryMb,
    env: options.env === undefined ? undefined : [...options.env],
  });
};
