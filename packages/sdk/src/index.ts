/** What a user's project imports: definitions, the step's context, and the client. */
export { type Client, type ClientOptions, createClient } from "@coppice/contract";
export { type ArtifactRef, artifactSchema } from "./artifact.ts";
export {
  and,
  type Condition,
  eq,
  exists,
  ge,
  gt,
  le,
  lt,
  ne,
  not,
  oneOf,
  or,
} from "./conditions.ts";
export type {
  ArtifactBytes,
  ArtifactOptions,
  StepArtifacts,
  StepCheckpoint,
  StepContext,
  StepLog,
} from "./context.ts";
export {
  type DeclareStep,
  definePipeline,
  type PipelineDefinition,
  type PipelineScope,
  type PipelineSpec,
} from "./define-pipeline.ts";
export {
  defineProject,
  PROJECT_MARK,
  type ProjectDefinition,
  type ProjectSpec,
} from "./define-project.ts";
export { defineStep, type StepDefinition, type StepSpec } from "./define-step.ts";
export type { ListRef, LooseRef, OutputRef, Ref, RefOf, StrictRef } from "./ref.ts";
export { NonRetryableError, RetryAfterError } from "./step-errors.ts";
export type {
  AnyStepHandle,
  Duration,
  MapOptions,
  MappedStepHandle,
  RetryOptions,
  StepHandle,
  StepOptions,
  TimeoutOptions,
} from "./step-options.ts";
