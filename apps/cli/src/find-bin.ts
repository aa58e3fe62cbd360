/** Where the apps are that the CLI starts: packages beside it, else bins beside it. */
import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

import { CoppiceError } from "@coppice/core";

export type AppName = "api" | "scheduler" | "worker";

const require = createRequire(import.meta.url);

const fromPackage = (app: AppName): string | undefined => {
  try {
    const path = require.resolve(`@coppice/${app}/package.json`);
    const { bin } = JSON.parse(readFileSync(path, "utf8")) as { bin?: Record<string, string> };
    const file = bin?.[`coppice-${app}`];
    return file === undefined ? undefined : join(dirname(path), file);
  } catch {
    return undefined;
  }
};

const fromBinFolder = (app: AppName): string | undefined => {
  for (let dir = dirname(fileURLToPath(import.meta.url)); ; dir = dirname(dir)) {
    const path = join(dir, "node_modules", ".bin", `coppice-${app}`);
    if (existsSync(path)) return path;
    if (dir === dirname(dir)) return undefined;
  }
};

/** A JavaScript file for `node`. @throws CPC_NOT_FOUND */
export const findAppBin = (app: AppName): string => {
  const path = fromPackage(app) ?? fromBinFolder(app);
  if (path !== undefined && existsSync(path)) return path;
  throw new CoppiceError("CPC_NOT_FOUND", {
    detail: `coppice-${app} is not installed beside this command.`,
    hint: "Install the whole of Coppice, or run this where the server is installed.",
  });
};
