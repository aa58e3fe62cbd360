/** The one writer of run state. */
export type { EngineControls } from "./commit.ts";
export {
  type Engine,
  type EngineOptions,
  LEASE_MS_DEFAULT,
  openEngine,
  type SubmitInput,
  type Submitted,
} from "./engine.ts";
export { explainRun, type WhyLine } from "./explain.ts";
export { createFailpoint } from "./failpoint.ts";
export {
  type Maintenance,
  type MaintenanceOptions,
  startMaintenance,
  startStamping,
} from "./maintenance.ts";
