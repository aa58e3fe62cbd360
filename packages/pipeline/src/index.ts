/** What happens next in a run. */
export { compilePipeline } from "./compile.ts";
export { buildGraph, type Graph } from "./graph.ts";
export {
  classKeyOf,
  IR_VERSION,
  MAP_ITEMS_MAX,
  MAP_WINDOW,
  type MapSpec,
  type PipelineIr,
  type PipelineIrInput,
  pipelineSchema,
  type Resources,
  type RetryPolicy,
  type StepIr,
  TRIGGER_RULES,
  type TriggerRule,
  type ValueSource,
  type WhenExpression,
  workerServesClass,
} from "./ir.ts";
export {
  type AttemptEnd,
  backoffMs,
  decideOutcome,
  type OutcomeDecision,
  type OutcomeInput,
} from "./outcome.ts";
export {
  type Located,
  locate,
  readArtifact,
  readSpilled,
  type SpilledValue,
} from "./placeholders.ts";
export {
  type Fact,
  ordinaryStatus,
  type Plan,
  type PlanInput,
  planNext,
  type SettledState,
} from "./plan.ts";
export { acceptsFailure, decideRule, type RuleVerdict, type Tally, tallyOf } from "./rules.ts";
export {
  cancelWaiting,
  decodeSummary,
  type EncodedSummary,
  emptySummary,
  encodeSummary,
  hasFailed,
  hasSucceeded,
  isFinal,
  type MovedItems,
  moveItems,
  type StepSummary,
  unfinished,
} from "./summary.ts";
export { canMove, TRANSITIONS } from "./transitions.ts";
export {
  ITEM_NAME_MAX,
  itemName,
  knownMapLength,
  lengthOf,
  type OutputRef,
  outputRefs,
  resolveSource,
  type SourceContext,
  type StepReference,
  stepReferences,
  stepSources,
} from "./values.ts";
export { evaluateWhen, whenSources } from "./when.ts";
