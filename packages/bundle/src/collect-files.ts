/** The project's data files by its globs: what lies inside the project and nothing else. */
import { glob, readFile, realpath, stat } from "node:fs/promises";
import { join, sep } from "node:path";

import { CoppiceError } from "@coppice/core";

import { requireInnerPath } from "./bundle-path.ts";

export interface DataFile {
  readonly path: string;
  readonly sizeBytes: number;
}

const SKIPPED = new Set(["node_modules", ".coppice", ".git"]);

const requireInside = async (dir: string, path: string): Promise<void> => {
  const real = await realpath(join(dir, path));
  if (!real.startsWith(dir + sep)) {
    throw new CoppiceError("CPC_PATH_ESCAPES", {
      detail: `the project's file ${path} lies outside of it`,
    });
  }
};

/**
 * @param dir a real path
 * @returns sorted by path
 * @throws CPC_PATH_ESCAPES, or CPC_INVALID_CONFIG for a glob that matches nothing
 */
export const findDataFiles = async (
  dir: string,
  globs: readonly string[],
): Promise<readonly DataFile[]> => {
  const found = new Map<string, DataFile>();
  for (const pattern of globs) {
    if (pattern.startsWith("/") || pattern.split(/[\\/]/).includes("..")) {
      throw new CoppiceError("CPC_PATH_ESCAPES", {
        detail: `expected a glob inside the project. Received: ${JSON.stringify(pattern)}`,
      });
    }
    let matches = 0;
    for await (const match of glob(pattern, { cwd: dir, exclude: (name) => SKIPPED.has(name) })) {
      const path = match.split(sep).join("/");
      const info = await stat(join(dir, path));
      if (!info.isFile()) continue;
      await requireInside(dir, path);
      matches += 1;
      found.set(path, { path: requireInnerPath(path), sizeBytes: info.size });
    }
    if (matches === 0) {
      throw new CoppiceError("CPC_INVALID_CONFIG", {
        detail: `the project's files have ${JSON.stringify(pattern)}, which matches no file`,
      });
    }
  }
  return [...found.values()].toSorted((a, b) => (a.path < b.path ? -1 : 1));
};

export const readDataFile = async (dir: string, file: DataFile): Promise<Uint8Array> =>
  readFile(join(dir, file.path));
