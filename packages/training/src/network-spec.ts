/**
 * A network as data. What must stay true: everything a model file may contain is named here, so
 * that loading one can build no class and run no code but ours; the shapes of all weights follow
 * from the description alone, so that a file is measured before anything is built from it.
 */
import { z } from "zod";

export const ACTIVATIONS = ["linear", "relu", "elu", "selu", "tanh", "sigmoid", "softmax"] as const;

const unitsSchema = z.number().int().min(1).max(65_536);

export const layerSpecSchema = z.discriminatedUnion("kind", [
  z.strictObject({
    kind: z.literal("dense"),
    units: unitsSchema,
    activation: z.enum(ACTIVATIONS).default("linear"),
    /** Weight of the squared kernel in the loss. */
    l2: z.number().min(0).max(1000).default(0),
  }),
  z.strictObject({ kind: z.literal("dropout"), rate: z.number().min(0).max(0.99) }),
  z.strictObject({ kind: z.literal("batchNormalization") }),
]);

export const networkSpecSchema = z.strictObject({
  inputs: unitsSchema,
  layers: z.array(layerSpecSchema).min(1).max(64),
});

export type NetworkSpec = z.output<typeof networkSpecSchema>;
export type NetworkSpecInput = z.input<typeof networkSpecSchema>;

export interface WeightShape {
  readonly layer: number;
  readonly shape: readonly number[];
}

/** In the order in which the engine lists them: what is trained first, then moving statistics. */
export const weightShapes = (spec: NetworkSpec): readonly WeightShape[] => {
  const trained: WeightShape[] = [];
  const moving: WeightShape[] = [];
  let width = spec.inputs;
  for (const [layer, part] of spec.layers.entries()) {
    if (part.kind === "dense") {
      trained.push({ layer, shape: [width, part.units] }, { layer, shape: [part.units] });
      width = part.units;
    } else if (part.kind === "batchNormalization") {
      trained.push({ layer, shape: [width] }, { layer, shape: [width] });
      moving.push({ layer, shape: [width] }, { layer, shape: [width] });
    }
  }
  return [...trained, ...moving];
};

export const outputCount = (spec: NetworkSpec): number =>
  spec.layers.reduce((width, part) => (part.kind === "dense" ? part.units : width), spec.inputs);

export const sizeOf = (shape: readonly number[]): number =>
  shape.reduce((product, length) => product * length, 1);

/**
 * A logistic regression is a network of one dense layer: the baseline that a larger one must beat.
 */
export const logisticRegression = (inputs: number, l2 = 0): NetworkSpecInput => ({
  inputs,
  layers: [{ kind: "dense", units: 1, activation: "sigmoid", l2 }],
});
