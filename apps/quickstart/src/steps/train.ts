/**
 * Trains one model: the network, or the logistic regression that it must beat. Both see the same
 * rows, encoded the same way, and stop by the same tune weeks. What was learnt about the inputs
 * (means, vocabularies) comes from the training rows alone and travels inside the model.
 */
import { artifactSchema, defineStep } from "@coppice/sdk";
import {
  createNetwork,
  encodeRows,
  fitNetwork,
  learnEncoder,
  logisticRegression,
  type NetworkSpecInput,
  saveModel,
  weightsDigest,
  withSeed,
} from "@coppice/training";
import { z } from "zod";
import { readFlightRows } from "../flight-rows.ts";
import { CATEGORIES, NUMBERS } from "./features.ts";

const smallNetwork = (inputs: number): NetworkSpecInput => ({
  inputs,
  layers: [
    { kind: "dense", units: 32, activation: "relu", l2: 1e-2 },
    { kind: "dropout", rate: 0.3 },
    { kind: "dense", units: 1, activation: "sigmoid", l2: 1e-2 },
  ],
});

/** Penalties and rates were chosen by the mean tune loss of five seeds, for each family alike. */
const FAMILIES = {
  logistic: {
    build: (inputs: number) => logisticRegression(inputs, 2e-2),
    learningRate: 3e-3,
    batchSize: 128,
  },
  network: { build: smallNetwork, learningRate: 2e-3, batchSize: 256 },
} as const;

export const train = defineStep({
  description: "Trains a model on the training weeks, stopped by the tune weeks",
  inputs: z.object({
    family: z.enum(["logistic", "network"]),
    months: z.array(artifactSchema),
    seed: z.number().int(),
    epochsMax: z.number().int().min(1).max(500),
  }),
  output: z.object({
    family: z.string(),
    model: artifactSchema,
    trainRows: z.number(),
    epochs: z.number(),
    bestEpoch: z.number(),
    tuneLogLoss: z.number(),
    weightsSha256: z.string(),
  }),
  run: async (ctx, { family, months, seed, epochsMax }) => {
    const rows = await readFlightRows(ctx, months, ["train", "tune"]);
    const encoder = learnEncoder(rows.train, { numbers: NUMBERS, categories: CATEGORIES });
    const inputs = encodeRows(encoder, rows.train);
    const { build, learningRate, batchSize } = FAMILIES[family];
    return withSeed(`${family} ${seed}`, async () => {
      const network = await createNetwork(build(inputs.columnCount));
      try {
        const fit = await fitNetwork(network, {
          train: { inputs, labels: rows.train.labels },
          tune: { inputs: encodeRows(encoder, rows.tune), labels: rows.tune.labels },
          loss: "binaryCrossentropy",
          epochsMax,
          batchSize,
          learningRate,
          patience: 6,
          signal: ctx.signal,
          onEpoch: ({ epoch, trainLoss, tuneLoss }) => {
            ctx.metric("trainLoss", trainLoss, epoch);
            if (tuneLoss !== undefined) ctx.metric("tuneLogLoss", tuneLoss, epoch);
            ctx.progress(epoch / epochsMax);
          },
        });
        const weightsSha256 = weightsDigest(network);
        const model = await ctx.artifacts.put(
          `${family}.model`,
          saveModel(network, { encoder, seed, weightsSha256 }),
          { kind: "model", metadata: { family } },
        );
        const tuneLogLoss = fit.epochs[fit.bestEpoch - 1]?.tuneLoss ?? Number.NaN;
        ctx.log.info("trained", { family, epochs: fit.epochs.length, tuneLogLoss });
        return {
          family,
          model,
          trainRows: inputs.rowCount,
          epochs: fit.epochs.length,
          bestEpoch: fit.bestEpoch,
          tuneLogLoss,
          weightsSha256,
        };
      } finally {
        network.dispose();
      }
    });
  },
});
