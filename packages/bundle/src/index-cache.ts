/**
 * What a project defines, remembered for the code that defined it: the same code with the same
 * packages outside defines the same, so that nothing heavy is imported where nothing has changed.
 * One entry, in the project's own `.coppice`; whatever is wrong with it, it is as if there were
 * none.
 */
import { randomUUID } from "node:crypto";
import { mkdir, readFile, rename, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";

import { pipelineSchema } from "@coppice/pipeline";
import { z } from "zod";

import { digestOf } from "./format.ts";

export const projectIndexSchema = z.object({
  name: z.string(),
  files: z.array(z.string()),
  pipelines: z.array(pipelineSchema),
});
/** What a project defines. */
export type ProjectIndex = Readonly<z.infer<typeof projectIndexSchema>>;

const entrySchema = z.object({ key: z.string(), index: projectIndexSchema });

const placeOf = (dir: string): string => join(dir, ".coppice", "build", "index.json");

export const indexKey = (code: string, externals: Readonly<Record<string, string>>): string =>
  digestOf(Buffer.from(JSON.stringify([process.version, externals, code])));

export const readIndexCache = async (
  dir: string,
  key: string,
): Promise<ProjectIndex | undefined> => {
  try {
    const entry = entrySchema.parse(JSON.parse(await readFile(placeOf(dir), "utf8")));
    return entry.key === key ? entry.index : undefined;
  } catch {
    return undefined;
  }
};

export const writeIndexCache = async (
  dir: string,
  key: string,
  index: ProjectIndex,
): Promise<void> => {
  const place = placeOf(dir);
  const partial = `${place}.${randomUUID()}`;
  await mkdir(dirname(place), { recursive: true });
  await writeFile(partial, JSON.stringify({ key, index }));
  await rename(partial, place);
};
