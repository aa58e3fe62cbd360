/**
 * A network that can predict and be trained. It owns its tensors: `dispose` frees them, and every
 * other call leaves the number of live tensors as it was. Weights go in and out as plain arrays.
 */
import { createHash } from "node:crypto";
import { CoppiceError } from "@coppice/core";
import { type Tensor, tensor, tensor2d, tidy } from "@tensorflow/tfjs-core";
import { layers, regularizers, type Sequential, sequential } from "@tensorflow/tfjs-layers";
import { selectBackend } from "./backend.ts";
import { type Matrix, requireMatrix } from "./matrix.ts";
import {
  type NetworkSpec,
  type NetworkSpecInput,
  networkSpecSchema,
  outputCount,
  sizeOf,
  weightShapes,
} from "./network-spec.ts";

/** Rows per prediction call: large enough for speed, small enough for memory. */
const PREDICT_ROWS = 4096;

export interface Network {
  readonly spec: NetworkSpec;
  /** One row per row of `inputs`, `outputs` numbers each. */
  predict(inputs: Matrix): Float32Array;
  /** Copies, in the order of `weightShapes(spec)`. */
  weights(): readonly Float32Array[];
  setWeights(weights: readonly Float32Array[]): void;
  /** Frees all tensors; may be called twice. */
  dispose(): void;
}

/** For `fit-network.ts` only: the engine's own object behind a network. */
const engines = new WeakMap<Network, Sequential>();

export const engineOf = (network: Network): Sequential => {
  const model = engines.get(network);
  if (model === undefined) {
    throw new CoppiceError("CPC_INVALID_INPUT", {
      detail: "expected a network that is not disposed. Received: another object or a disposed one",
    });
  }
  return model;
};

const build = (spec: NetworkSpec): Sequential => {
  const model = sequential();
  for (const [index, part] of spec.layers.entries()) {
    const inputShape = index === 0 ? { inputShape: [spec.inputs] } : {};
    if (part.kind === "dense") {
      const { units, activation, l2 } = part;
      const kernelRegularizer = l2 > 0 ? { kernelRegularizer: regularizers.l2({ l2 }) } : {};
      model.add(layers.dense({ units, activation, ...kernelRegularizer, ...inputShape }));
    } else if (part.kind === "dropout") {
      // No seed here: a layer with one draws the same mask at every call.
      model.add(layers.dropout({ rate: part.rate, ...inputShape }));
    } else {
      model.add(layers.batchNormalization(inputShape));
    }
  }
  return model;
};

const predictRows = (model: Sequential, inputs: Matrix, outputs: number): Float32Array => {
  const predictions = new Float32Array(inputs.rowCount * outputs);
  for (let from = 0; from < inputs.rowCount; from += PREDICT_ROWS) {
    const count = Math.min(PREDICT_ROWS, inputs.rowCount - from);
    const rows = inputs.values.subarray(
      from * inputs.columnCount,
      (from + count) * inputs.columnCount,
    );
    tidy(() => {
      const batch = tensor2d(rows, [count, inputs.columnCount]);
      const output = model.predict(batch, { batchSize: count });
      const single = Array.isArray(output) ? output[0] : output;
      if (single !== undefined) predictions.set(single.dataSync<"float32">(), from * outputs);
    });
  }
  return predictions;
};

const requireWeights = (spec: NetworkSpec, weights: readonly Float32Array[]): void => {
  const expected = weightShapes(spec).map(({ shape }) => sizeOf(shape));
  const received = weights.map((weight) => weight.length);
  if (expected.join() === received.join()) return;
  throw new CoppiceError("CPC_INVALID_INPUT", {
    detail: `expected the sizes ${expected.join(", ")}. Received: ${received.join(", ")}`,
  });
};

const setModelWeights = (
  model: Sequential,
  spec: NetworkSpec,
  weights: readonly Float32Array[],
): void => {
  requireWeights(spec, weights);
  tidy(() => {
    const tensors: Tensor[] = weightShapes(spec).map(({ shape }, index) =>
      tensor(weights[index] ?? new Float32Array(), [...shape], "float32"),
    );
    model.setWeights(tensors);
  });
};

/**
 * Initial weights come from `Math.random`: whoever wants the same network twice seeds it first, as
 * a worker does for every attempt.
 * @throws CPC_INVALID_INPUT where the description is not valid
 */
export const createNetwork = async (input: NetworkSpecInput): Promise<Network> => {
  const parsed = networkSpecSchema.safeParse(input);
  if (!parsed.success) {
    const issues = parsed.error.issues.map((issue) => `${issue.path.join(".")}: ${issue.message}`);
    throw new CoppiceError("CPC_INVALID_INPUT", { detail: `the network: ${issues.join("; ")}` });
  }
  const spec = parsed.data;
  await selectBackend();
  const model = build(spec);
  const network: Network = {
    spec,
    predict: (inputs) => {
      requireMatrix(inputs, spec.inputs, "the inputs");
      return predictRows(engineOf(network), inputs, outputCount(spec));
    },
    weights: () =>
      engineOf(network)
        .getWeights()
        .map((weight) => Float32Array.from(weight.dataSync<"float32">())),
    setWeights: (weights) => setModelWeights(engineOf(network), spec, weights),
    dispose: () => {
      if (engines.delete(network)) model.dispose();
    },
  };
  engines.set(network, model);
  return network;
};

/** Little-endian on every machine, whatever its own order. */
export const floatBytes = (values: Float32Array): Uint8Array => {
  const bytes = new Uint8Array(values.length * 4);
  const view = new DataView(bytes.buffer);
  for (const [index, value] of values.entries()) view.setFloat32(index * 4, value, true);
  return bytes;
};

/**
 * sha256 over all weights in order. Not over their names: those carry a counter of the process, so
 * that they differ in a process that has trained before.
 */
export const weightsDigest = (network: Network): string => {
  const hash = createHash("sha256");
  for (const weight of network.weights()) hash.update(floatBytes(weight));
  return hash.digest("hex");
};
