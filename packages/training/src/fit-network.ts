/**
 * Training: one engine call per epoch, so that each shuffle starts from the same order and a
 * resumed training repeats an uninterrupted one.
 *
 * What must stay true: all randomness comes from `Math.random` (the worker seeds it per attempt);
 * an abort is heard within an epoch, because the engine yields by time; whether it ends, stops or
 * throws, no tensor stays behind but the network's own.
 */
import { CoppiceError } from "@coppice/core";
import { type Tensor, tensor2d, train } from "@tensorflow/tfjs-core";
import type { Sequential } from "@tensorflow/tfjs-layers";
import { type Dataset, requireDataset } from "./matrix.ts";
import { engineOf, type Network } from "./network.ts";
import { outputCount } from "./network-spec.ts";

export interface FitOptions {
  readonly train: Dataset;
  /** Rows that nothing is learnt from; they decide when to stop and which epoch is kept. */
  readonly tune?: Dataset;
  readonly loss: "binaryCrossentropy" | "meanSquaredError";
  readonly epochsMax: number;
  readonly batchSize: number;
  readonly learningRate: number;
  /**
   * Stops after so many epochs without a better tune loss and restores the best epoch's weights.
   */
  readonly patience?: number;
  readonly signal?: AbortSignal;
  /** Called after every epoch; a promise is awaited. */
  readonly onEpoch?: (epoch: EpochResult) => void | Promise<void>;
}

export interface EpochResult {
  /** From 1. */
  readonly epoch: number;
  /** The engine's mean over batches, penalties included. */
  readonly trainLoss: number;
  /** On the tune rows, without penalties. */
  readonly tuneLoss?: number;
}

export interface FitResult {
  readonly epochs: readonly EpochResult[];
  /** The epoch whose weights the network has now. */
  readonly bestEpoch: number;
  readonly stoppedBy: "epochsMax" | "patience";
}

const requireOptions = (network: Network, options: FitOptions): void => {
  requireDataset(options.train, network.spec.inputs, "the training rows");
  if (options.tune !== undefined) {
    requireDataset(options.tune, network.spec.inputs, "the tune rows");
  }
  const outputs = outputCount(network.spec);
  if (outputs !== 1) {
    throw new CoppiceError("CPC_INVALID_INPUT", {
      detail: `expected a network with one output. Received: ${outputs}`,
    });
  }
  const whole = {
    epochsMax: options.epochsMax,
    batchSize: options.batchSize,
    patience: options.patience ?? 1,
  };
  for (const [name, value] of Object.entries(whole)) {
    if (Number.isInteger(value) && value >= 1) continue;
    throw new CoppiceError("CPC_INVALID_INPUT", {
      detail: `expected ${name} to be a whole number from 1. Received: ${value}`,
    });
  }
  if (!(options.learningRate > 0 && options.learningRate < 10)) {
    throw new CoppiceError("CPC_INVALID_INPUT", {
      detail: `expected a learning rate between 0 and 10. Received: ${options.learningRate}`,
    });
  }
};

const meanLoss = (
  loss: FitOptions["loss"],
  predictions: Float32Array,
  labels: Float32Array,
): number => {
  let sum = 0;
  for (const [index, label] of labels.entries()) {
    const predicted = predictions[index] ?? Number.NaN;
    if (loss === "meanSquaredError") {
      sum += (predicted - label) ** 2;
    } else {
      const clipped = Math.min(1 - 1e-7, Math.max(1e-7, predicted));
      sum -= label * Math.log(clipped) + (1 - label) * Math.log(1 - clipped);
    }
  }
  return sum / labels.length;
};

const runEpoch = async (
  model: Sequential,
  inputs: Tensor,
  labels: Tensor,
  options: FitOptions,
): Promise<number> => {
  const stop = (): void => {
    model.stopTraining = true;
  };
  options.signal?.addEventListener("abort", stop);
  try {
    const history = await model.fit(inputs, labels, {
      epochs: 1,
      batchSize: options.batchSize,
      shuffle: true,
      yieldEvery: "auto",
    });
    options.signal?.throwIfAborted();
    const [loss] = history.history["loss"] ?? [];
    return typeof loss === "number" ? loss : Number.NaN;
  } finally {
    options.signal?.removeEventListener("abort", stop);
  }
};

const runEpochs = async (
  network: Network,
  inputs: Tensor,
  labels: Tensor,
  options: FitOptions,
): Promise<FitResult> => {
  const epochs: EpochResult[] = [];
  let best: { epoch: number; loss: number; weights: readonly Float32Array[] } | undefined;
  let stoppedBy: FitResult["stoppedBy"] = "epochsMax";
  for (let epoch = 1; epoch <= options.epochsMax; epoch += 1) {
    options.signal?.throwIfAborted();
    const trainLoss = await runEpoch(engineOf(network), inputs, labels, options);
    if (!Number.isFinite(trainLoss)) {
      throw new CoppiceError("CPC_STEP_FAILED", {
        detail: `expected a finite training loss in epoch ${epoch}. Received: ${trainLoss}`,
        hint: "Try a smaller learning rate.",
      });
    }
    const { tune } = options;
    const result: EpochResult =
      tune === undefined
        ? { epoch, trainLoss }
        : {
            epoch,
            trainLoss,
            tuneLoss: meanLoss(options.loss, network.predict(tune.inputs), tune.labels),
          };
    epochs.push(result);
    await options.onEpoch?.(result);
    if (result.tuneLoss === undefined || options.patience === undefined) continue;
    if (best === undefined || result.tuneLoss < best.loss) {
      best = { epoch, loss: result.tuneLoss, weights: network.weights() };
    } else if (epoch - best.epoch >= options.patience) {
      stoppedBy = "patience";
      break;
    }
  }
  if (best !== undefined) network.setWeights(best.weights);
  return { epochs, bestEpoch: best?.epoch ?? epochs.length, stoppedBy };
};

/**
 * @throws the signal's reason where it aborts; CPC_INVALID_INPUT for rows that do not fit;
 * CPC_STEP_FAILED where the loss is no longer a number
 */
export const fitNetwork = async (network: Network, options: FitOptions): Promise<FitResult> => {
  requireOptions(network, options);
  options.signal?.throwIfAborted();
  const model = engineOf(network);
  const optimizer = train.adam(options.learningRate);
  const { values, rowCount, columnCount } = options.train.inputs;
  const inputs = tensor2d(values, [rowCount, columnCount]);
  const labels = tensor2d(options.train.labels, [rowCount, 1]);
  try {
    model.compile({
      optimizer,
      loss: options.loss === "meanSquaredError" ? "meanSquaredError" : "binaryCrossentropy",
    });
    return await runEpochs(network, inputs, labels, options);
  } finally {
    inputs.dispose();
    labels.dispose();
    // An optimizer that was passed as an object is not freed with the model.
    optimizer.dispose();
  }
};
