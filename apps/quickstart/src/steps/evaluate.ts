/**
 * Judges both models on weeks that nothing was learnt from, beside the simplest forecast there is:
 * the training weeks' share of late flights, said of every flight.
 */
import { type ArtifactRef, artifactSchema, defineStep, type StepContext } from "@coppice/sdk";
import {
  baseRate,
  type BinaryEvaluation,
  encodeRows,
  evaluateBinary,
  loadModel,
  logLoss,
  parseEncoder,
} from "@coppice/training";
import { z } from "zod";
import { type FlightRows, readFlightRows } from "../flight-rows.ts";

const scoresSchema = z.object({
  logLoss: z.number(),
  brier: z.number(),
  areaUnderCurve: z.number().nullable(),
  calibrationError: z.number(),
  meanPredicted: z.number(),
});
const binSchema = z.object({
  from: z.number(),
  to: z.number(),
  count: z.number(),
  meanPredicted: z.number(),
  observedRate: z.number(),
});
export const metricsSchema = z.object({
  testRows: z.number(),
  lateRate: z.number(),
  baseRate: scoresSchema,
  logistic: scoresSchema,
  network: scoresSchema,
  /** Of the network: what it said, and what came. */
  calibration: z.array(binSchema),
  /** How much smaller the network's log-loss is, flight by flight: mean and its standard error. */
  gainOverLogistic: z.object({ mean: z.number(), standardError: z.number() }),
  beatsBaselines: z.boolean(),
});
export type Metrics = z.output<typeof metricsSchema>;

const toScores = (evaluation: BinaryEvaluation): z.output<typeof scoresSchema> => ({
  logLoss: evaluation.logLoss,
  brier: evaluation.brier,
  areaUnderCurve: evaluation.areaUnderCurve,
  calibrationError: evaluation.calibration.expectedError,
  meanPredicted: evaluation.calibration.meanPredicted,
});

/** On the same flights, so that easy and hard ones cancel out. */
const pairedGain = (
  worse: Float32Array,
  better: Float32Array,
  labels: Float32Array,
): Metrics["gainOverLogistic"] => {
  const gains = Array.from(labels, (label, index) => {
    const before = logLoss([worse[index] ?? 0], [label]);
    return before - logLoss([better[index] ?? 0], [label]);
  });
  const mean = gains.reduce((sum, gain) => sum + gain, 0) / gains.length;
  const squares = gains.reduce((sum, gain) => sum + (gain - mean) ** 2, 0);
  return { mean, standardError: Math.sqrt(squares) / gains.length };
};

const predict = async (
  ctx: StepContext,
  model: ArtifactRef,
  rows: FlightRows,
): Promise<Float32Array> => {
  const { network, metadata } = await loadModel(await ctx.artifacts.get(model));
  try {
    const inputs = encodeRows(parseEncoder(metadata["encoder"]), rows);
    return network.predict(inputs);
  } finally {
    network.dispose();
  }
};

export const evaluate = defineStep({
  description: "Judges the models on later weeks, beside the base rate",
  inputs: z.object({
    months: z.array(artifactSchema),
    logistic: artifactSchema,
    network: artifactSchema,
  }),
  output: z.object({ metrics: metricsSchema }),
  run: async (ctx, { months, logistic, network }) => {
    const rows = await readFlightRows(ctx, months, ["train", "test"]);
    const { labels } = rows.test;
    const constant = new Float64Array(labels.length).fill(baseRate(rows.train.labels));
    const predictions = {
      logistic: await predict(ctx, logistic, rows.test),
      network: await predict(ctx, network, rows.test),
    };
    const evaluations = {
      baseRate: evaluateBinary(constant, labels),
      logistic: evaluateBinary(predictions.logistic, labels),
      network: evaluateBinary(predictions.network, labels),
    };
    for (const [name, scores] of Object.entries(evaluations)) {
      ctx.metric(`${name}.logLoss`, scores.logLoss);
      if (scores.areaUnderCurve !== null) {
        ctx.metric(`${name}.areaUnderCurve`, scores.areaUnderCurve);
      }
    }
    const best = Math.min(evaluations.baseRate.logLoss, evaluations.logistic.logLoss);
    return {
      metrics: {
        testRows: labels.length,
        lateRate: baseRate(labels),
        baseRate: toScores(evaluations.baseRate),
        logistic: toScores(evaluations.logistic),
        network: toScores(evaluations.network),
        calibration: [...evaluations.network.calibration.bins],
        gainOverLogistic: pairedGain(predictions.logistic, predictions.network, labels),
        beatsBaselines: evaluations.network.logLoss < best,
      },
    };
  },
});
