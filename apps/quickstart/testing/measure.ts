/** Prints the README's table: `npm run measure --workspace @coppice/quickstart [-- <seed> …]`. */
import { lateFlights } from "../src/pipelines/late-flights.ts";
import { metricsSchema } from "../src/steps/evaluate.ts";
import { renderReport } from "../src/steps/report.ts";
import { runInProcess } from "./run-in-process.ts";

const seeds = process.argv.slice(2).map(Number);
for (const seed of seeds.length === 0 ? [7] : seeds) {
  const result = await runInProcess(lateFlights, {
    projectDir: new URL("..", import.meta.url).pathname,
    params: { seed },
  });
  const { metrics } = result.outputs["evaluate"] as { metrics: unknown };
  const took = Object.entries(result.tookMs).map(([key, ms]) => `${key} ${Math.round(ms)} ms`);
  const { tuneLogLoss, epochs } = result.outputs["train-network"] as Record<string, number>;
  process.stdout.write(
    `seed ${seed}, network: tune log-loss ${tuneLogLoss?.toFixed(4)} after ${epochs} epochs\n` +
      `${renderReport(metricsSchema.parse(metrics))}\n${took.join(", ")}\n\n`,
  );
  await result.close();
}
