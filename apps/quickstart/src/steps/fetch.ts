/**
 * Takes a table from where it lives and keeps it as an artifact, so that the rest of the run reads
 * the same bytes whatever happens to the source. Here the source is a file of the project.
 */
import { join } from "node:path";
import { artifactSchema, defineStep } from "@coppice/sdk";
import { z } from "zod";

export const fetch = defineStep({
  description: "Keeps a source table as an artifact",
  inputs: z.object({ file: z.enum(["flights.csv", "weather.csv"]) }),
  output: z.object({ table: artifactSchema }),
  run: async (ctx, { file }) => {
    const path = join(ctx.projectDir, "data", file);
    const table = await ctx.artifacts.put(file, { file: path }, { kind: "table" });
    ctx.log.info("fetched", { file, sizeBytes: table.$artifact.sizeBytes });
    return { table };
  },
});
