/**
 * A step's definition: a function plus the schemas of what it takes and gives. Nothing runs here:
 * the worker's child parses the inputs, calls `run`, parses the output.
 */
import { z } from "zod";

import type { StepContext } from "./context.ts";

export interface StepDefinition<
  In extends z.ZodObject = z.ZodObject,
  Out extends z.ZodType = z.ZodType,
> {
  readonly description: string | undefined;
  readonly inputs: In;
  readonly output: Out;
  // A method, so that any step's definition may stand where "some step's definition" is wanted.
  run(ctx: StepContext, inputs: z.output<In>): z.input<Out> | Promise<z.input<Out>>;
}

export interface StepSpec<In extends z.ZodObject, Out extends z.ZodType> {
  readonly description?: string;
  /** Parsed before `run`; left out: the step takes nothing. */
  readonly inputs?: In;
  /** Parsed after `run`; left out: the step returns nothing. */
  readonly output?: Out;
  readonly run: (ctx: StepContext, inputs: z.output<In>) => z.input<Out> | Promise<z.input<Out>>;
}

type NoInputs = z.ZodObject<Record<never, never>>;
type NoOutput = z.ZodType<void, void>;

/** What a step without an output schema may return; stored as null. */
const noOutput = z
  .undefined()
  .or(z.null())
  .transform(() => null);

export const defineStep = <In extends z.ZodObject = NoInputs, Out extends z.ZodType = NoOutput>(
  spec: StepSpec<In, Out>,
): StepDefinition<In, Out> => ({
  description: spec.description,
  inputs: spec.inputs ?? (z.object({}) as unknown as In),
  output: spec.output ?? (noOutput as unknown as Out),
  run: spec.run,
});
