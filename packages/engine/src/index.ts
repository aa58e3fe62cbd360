/** The one writer of run state. */
export type { EngineControls } from "./commit.ts";
export {
  type Engine,
  type EngineOptions,
  LEASE_MS_DEFAULT,
  openEngine,
  type Submitted,
  type SubmitInput,
} from "./engine.ts";
export {
  type Maintenance,
  type MaintenanceOptions,
  startMaintenance,
  startStamping,
} from "./maintenance.ts";
export { explainRun, type WhyLine } from "./explain.ts";
