/** Devices, fit, evaluate, save, load: the one room that knows TensorFlow.js. */
export {
  type BackendInfo,
  type BackendName,
  BACKENDS,
  countTensors,
  selectBackend,
} from "./backend.ts";
export {
  encodedColumns,
  type Encoder,
  type EncoderOptions,
  encodeRows,
  encoderSchema,
  learnEncoder,
  parseEncoder,
  type RawRows,
} from "./encoder.ts";
export {
  areaUnderCurve,
  baseRate,
  type BinaryEvaluation,
  brierScore,
  type Calibration,
  calibration,
  type CalibrationBin,
  evaluateBinary,
  logLoss,
} from "./evaluate.ts";
export { type EpochResult, fitNetwork, type FitOptions, type FitResult } from "./fit-network.ts";
export type { Dataset, Matrix } from "./matrix.ts";
export { type LoadedModel, loadModel, saveModel } from "./model-file.ts";
export { createNetwork, type Network, weightsDigest } from "./network.ts";
export {
  logisticRegression,
  type NetworkSpec,
  type NetworkSpecInput,
  networkSpecSchema,
} from "./network-spec.ts";
export { withSeed } from "./with-seed.ts";
