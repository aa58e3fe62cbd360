/**
 * Which engine computes. Chosen by name; `cpu`, plain JavaScript, is the only one so far. What must
 * stay true: choosing is idempotent, and nothing in this room computes before it was chosen.
 */
import { CoppiceError } from "@coppice/core";
import {
  enableProdMode,
  getBackend,
  memory,
  setBackend,
  version_core,
} from "@tensorflow/tfjs-core";

export const BACKENDS = ["cpu"] as const;
export type BackendName = (typeof BACKENDS)[number];

export interface BackendInfo {
  readonly name: BackendName;
  /** Version of TensorFlow.js. */
  readonly version: string;
}

/** @throws CPC_NO_DEVICE */
export const selectBackend = async (name: string = "cpu"): Promise<BackendInfo> => {
  const found = BACKENDS.find((backend) => backend === name);
  if (found === undefined) {
    throw new CoppiceError("CPC_NO_DEVICE", {
      detail: `expected one of ${BACKENDS.join(", ")}. Received: ${JSON.stringify(name)}`,
    });
  }
  if (getBackend() !== found) {
    // In 4.22 this mode only silences warnings; one of them advertises another package at the
    // first tensor, in the middle of a step's log.
    enableProdMode();
    await import("@tensorflow/tfjs-backend-cpu");
    if (!(await setBackend(found))) {
      throw new CoppiceError("CPC_NO_DEVICE", { detail: `the backend ${found} did not start` });
    }
  }
  return { name: found, version: version_core };
};

/** Live tensors: whoever cleans up leaves the number as it was. */
export const countTensors = (): number => memory().numTensors;
