/**
 * How good probabilities of yes or no are. Pure functions of predictions and labels.
 * What must stay true: the same rows give the same numbers whatever their order or batches (up to
 * rounding); a number that does not exist (the AUC of one class) is null, never a made-up 0.5.
 */
import { CoppiceError } from "@coppice/core";

export interface CalibrationBin {
  readonly from: number;
  readonly to: number;
  readonly count: number;
  readonly meanPredicted: number;
  readonly observedRate: number;
}

export interface Calibration {
  /** Expected calibration error: mean distance of prediction and rate, weighted by rows. */
  readonly expectedError: number;
  readonly meanPredicted: number;
  readonly observedRate: number;
  /** Bins of equal width; empty ones are left out. */
  readonly bins: readonly CalibrationBin[];
}

export interface BinaryEvaluation {
  readonly count: number;
  readonly logLoss: number;
  readonly brier: number;
  /** null where only one class is present. */
  readonly areaUnderCurve: number | null;
  readonly calibration: Calibration;
}

type Numbers = ArrayLike<number>;

const requirePairs = (predictions: Numbers, labels: Numbers): void => {
  if (predictions.length !== labels.length || labels.length === 0) {
    throw new CoppiceError("CPC_INVALID_INPUT", {
      detail:
        `expected as many predictions as labels, at least one. ` +
        `Received: ${predictions.length} and ${labels.length}`,
    });
  }
  for (let index = 0; index < labels.length; index += 1) {
    const predicted = predictions[index] ?? Number.NaN;
    const label = labels[index];
    if (predicted >= 0 && predicted <= 1 && (label === 0 || label === 1)) continue;
    throw new CoppiceError("CPC_INVALID_INPUT", {
      detail:
        `expected a prediction from 0 to 1 and a label 0 or 1. ` +
        `Received: ${predicted} and ${label} in row ${index}`,
    });
  }
};

const meanOver = (
  predictions: Numbers,
  labels: Numbers,
  term: (predicted: number, label: number) => number,
): number => {
  requirePairs(predictions, labels);
  let sum = 0;
  for (let index = 0; index < labels.length; index += 1) {
    sum += term(predictions[index] ?? 0, labels[index] ?? 0);
  }
  return sum / labels.length;
};

/** Predictions are clipped to 1e-7 … 1 − 1e-7, or a single sure mistake would be infinite. */
export const logLoss = (predictions: Numbers, labels: Numbers): number =>
  meanOver(predictions, labels, (predicted, label) => {
    const clipped = Math.min(1 - 1e-7, Math.max(1e-7, predicted));
    return -Math.log(label === 1 ? clipped : 1 - clipped);
  });

export const brierScore = (predictions: Numbers, labels: Numbers): number =>
  meanOver(predictions, labels, (predicted, label) => (predicted - label) ** 2);

/** The chance that a late one is ranked above one on time; ties count half (Mann-Whitney). */
export const areaUnderCurve = (predictions: Numbers, labels: Numbers): number | null => {
  requirePairs(predictions, labels);
  const order = Uint32Array.from({ length: labels.length }, (_, index) => index).toSorted(
    (a, b) => (predictions[a] ?? 0) - (predictions[b] ?? 0),
  );
  let positives = 0;
  let rankSum = 0;
  for (let start = 0; start < order.length; ) {
    let end = start;
    let positivesHere = 0;
    while (end < order.length && predictions[order[end] ?? 0] === predictions[order[start] ?? 0]) {
      positivesHere += labels[order[end] ?? 0] ?? 0;
      end += 1;
    }
    // Tied rows share the mean of the ranks start + 1 … end.
    rankSum += (positivesHere * (start + 1 + end)) / 2;
    positives += positivesHere;
    start = end;
  }
  const negatives = order.length - positives;
  if (positives === 0 || negatives === 0) return null;
  return (rankSum - (positives * (positives + 1)) / 2) / (positives * negatives);
};

export const calibration = (predictions: Numbers, labels: Numbers, binCount = 10): Calibration => {
  requirePairs(predictions, labels);
  if (!Number.isInteger(binCount) || binCount < 1 || binCount > 1000) {
    throw new CoppiceError("CPC_INVALID_INPUT", {
      detail: `expected 1 to 1000 bins. Received: ${binCount}`,
    });
  }
  const sums = Array.from({ length: binCount }, () => ({ count: 0, predicted: 0, observed: 0 }));
  for (let index = 0; index < labels.length; index += 1) {
    const predicted = predictions[index] ?? 0;
    const sum = sums[Math.min(binCount - 1, Math.floor(predicted * binCount))];
    if (sum === undefined) continue;
    sum.count += 1;
    sum.predicted += predicted;
    sum.observed += labels[index] ?? 0;
  }
  const bins = sums.flatMap(({ count, predicted, observed }, index) =>
    count === 0
      ? []
      : [
          {
            from: index / binCount,
            to: (index + 1) / binCount,
            count,
            meanPredicted: predicted / count,
            observedRate: observed / count,
          },
        ],
  );
  const weigh = (term: (bin: CalibrationBin) => number): number =>
    bins.reduce((sum, bin) => sum + (bin.count / labels.length) * term(bin), 0);
  return {
    expectedError: weigh((bin) => Math.abs(bin.meanPredicted - bin.observedRate)),
    meanPredicted: weigh((bin) => bin.meanPredicted),
    observedRate: weigh((bin) => bin.observedRate),
    bins,
  };
};

export const evaluateBinary = (predictions: Numbers, labels: Numbers): BinaryEvaluation => ({
  count: labels.length,
  logLoss: logLoss(predictions, labels),
  brier: brierScore(predictions, labels),
  areaUnderCurve: areaUnderCurve(predictions, labels),
  calibration: calibration(predictions, labels),
});

/** The simplest forecast: the share of yes among these labels. */
export const baseRate = (labels: Numbers): number => {
  requirePairs(labels, labels);
  let sum = 0;
  for (let index = 0; index < labels.length; index += 1) sum += labels[index] ?? 0;
  return sum / labels.length;
};
