/**
 * Installed packages: where one lies, which version it has, whether it has parts that a bundler
 * can't carry (native addons), so that it must stay outside.
 */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";

import { z } from "zod";

/** Heavy libraries that belong to the worker's installation; patterns in esbuild's language. */
export const ALWAYS_EXTERNAL = [
  "@coppice/training",
  "@coppice/data",
  "@tensorflow/*",
  "@duckdb/*",
  "onnxruntime-node",
];

const packageJsonSchema = z.object({
  name: z.string().optional(),
  version: z.string().optional(),
  gypfile: z.boolean().optional(),
  binary: z.unknown().optional(),
  napi: z.unknown().optional(),
  scripts: z.record(z.string(), z.unknown()).default({}),
  dependencies: z.record(z.string(), z.unknown()).default({}),
  optionalDependencies: z.record(z.string(), z.unknown()).default({}),
});

/** Helpers whose only use is to find or build a native addon. */
const ADDON_HELPERS = [
  "bindings",
  "node-gyp-build",
  "prebuild-install",
  "@mapbox/node-pre-gyp",
  "node-pre-gyp",
  "node-gyp-build-optional-packages",
  "cmake-js",
];

/** `@a/b/c` → `@a/b`, `a/b` → `a`. */
export const packageNameOf = (specifier: string): string =>
  specifier.split("/", specifier.startsWith("@") ? 2 : 1).join("/");

export const readPackageJson = (dir: string) => {
  try {
    const parsed = packageJsonSchema.safeParse(
      JSON.parse(readFileSync(join(dir, "package.json"), "utf8")),
    );
    return parsed.success ? parsed.data : undefined;
  } catch {
    return undefined;
  }
};

/** As Node looks for it: node_modules of this folder, then of each one above. */
export const findPackageDir = (name: string, from: string): string | undefined => {
  for (let dir = from; ; dir = dirname(dir)) {
    const found = join(dir, "node_modules", name);
    if (existsSync(join(found, "package.json"))) return found;
    if (dir === dirname(dir)) return undefined;
  }
};

/** Whether the package has, builds or fetches a native addon. */
export const isNativePackage = (dir: string): boolean => {
  const pkg = readPackageJson(dir);
  if (pkg === undefined) return false;
  if (pkg.gypfile === true || pkg.binary !== undefined || pkg.napi !== undefined) return true;
  if (ADDON_HELPERS.some((name) => Object.hasOwn(pkg.dependencies, name))) return true;
  const top = readdirSync(dir);
  if (
    top.some((name) => name === "binding.gyp" || name === "prebuilds" || name.endsWith(".node"))
  ) {
    return true;
  }
  // An addon as a package per platform: `name-linux-x64-gnu`, `@scope/linux-arm64`.
  return Object.keys(pkg.optionalDependencies).some((name) =>
    /(linux|darwin|win32)-(x64|arm64)/.test(name),
  );
};
