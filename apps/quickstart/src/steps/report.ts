/** The run's last word, whether it went well or not: a page that people can read. */
import { artifactSchema, defineStep } from "@coppice/sdk";
import { z } from "zod";
import { type Metrics, metricsSchema } from "./evaluate.ts";

const row = (name: string, scores: Metrics["network"]): string =>
  `| ${name} | ${scores.logLoss.toFixed(4)} | ${scores.areaUnderCurve?.toFixed(3) ?? "none"} | ` +
  `${scores.brier.toFixed(4)} | ${scores.calibrationError.toFixed(3)} | ` +
  `${scores.meanPredicted.toFixed(3)} |`;

export const renderReport = (metrics: Metrics): string =>
  [
    `${metrics.testRows} flights, ${(metrics.lateRate * 100).toFixed(1)} % of them late.`,
    "",
    "| forecast | log-loss | AUC | Brier | calibration error | mean forecast |",
    "|---|---|---|---|---|---|",
    row("base rate", metrics.baseRate),
    row("logistic regression", metrics.logistic),
    row("network", metrics.network),
    "",
    `The network's log-loss is ${metrics.gainOverLogistic.mean.toFixed(4)} smaller than the ` +
      `regression's (standard error ${metrics.gainOverLogistic.standardError.toFixed(4)}).`,
    "",
    "| network said | flights | mean forecast | came late |",
    "|---|---|---|---|",
    ...metrics.calibration.map(
      (bin) =>
        `| ${bin.from.toFixed(1)}–${bin.to.toFixed(1)} | ${bin.count} | ` +
        `${bin.meanPredicted.toFixed(3)} | ${bin.observedRate.toFixed(3)} |`,
    ),
    "",
  ].join("\n");

export const report = defineStep({
  description: "Writes the result down, whatever it is",
  inputs: z.object({ status: z.string(), metrics: metricsSchema.optional() }),
  output: z.object({ report: artifactSchema }),
  run: async (ctx, { status, metrics }) => {
    const text =
      metrics === undefined ? `The run is ${status}: no result.\n` : renderReport(metrics);
    ctx.log.info("reported", { status, beatsBaselines: metrics?.beatsBaselines ?? false });
    const bytes = new TextEncoder().encode(text);
    return { report: await ctx.artifacts.put("report.md", bytes, { kind: "report" }) };
  },
});
