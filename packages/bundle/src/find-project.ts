/** Where a project is: the nearest folder upwards that has a coppice.config file. */
import { existsSync, realpathSync } from "node:fs";
import { dirname, join, resolve } from "node:path";

import { CoppiceError } from "@coppice/core";

const CONFIG_NAMES = [
  "coppice.config.ts",
  "coppice.config.mts",
  "coppice.config.js",
  "coppice.config.mjs",
];

export interface ProjectPlace {
  /** Real path of the project's folder. */
  readonly dir: string;
  readonly configFile: string;
}

const configIn = (dir: string): string | undefined =>
  CONFIG_NAMES.map((name) => join(dir, name)).find((path) => existsSync(path));

/** @returns undefined where neither the folder nor one above it has a project */
export const findProject = (from: string): ProjectPlace | undefined => {
  for (let dir = resolve(from); ; dir = dirname(dir)) {
    const configFile = configIn(dir);
    if (configFile !== undefined) {
      const real = realpathSync(configFile);
      return { dir: dirname(real), configFile: real };
    }
    if (dir === dirname(dir)) return undefined;
  }
};

/** @throws CPC_PROJECT_NOT_FOUND unless the folder itself has a project */
export const requireProject = (dir: string): ProjectPlace => {
  const configFile = configIn(resolve(dir));
  if (configFile === undefined) {
    throw new CoppiceError("CPC_PROJECT_NOT_FOUND", {
      detail: `expected one of ${CONFIG_NAMES.join(", ")} in ${resolve(dir)}`,
    });
  }
  const real = realpathSync(configFile);
  return { dir: dirname(real), configFile: real };
};
