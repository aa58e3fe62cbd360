/**
 * The user's code as one ES module: the only place that speaks to esbuild.
 *
 * What must stay true: the text depends on the files' contents alone, not on the project's place.
 * esbuild writes paths relative to the project into comments, into the wrappers of CommonJS modules
 * and into the source map; those that lead outside are replaced by `node_modules/<package>/…`.
 */
import { isBuiltin } from "node:module";
import { basename, dirname, join, relative, resolve, sep } from "node:path";

import { CoppiceError } from "@coppice/core";
import { build, type BuildFailure, type Metafile, type Plugin } from "esbuild";

import type { ProjectPlace } from "./find-project.ts";
import { BUNDLE_ENTRY } from "./format.ts";
import {
  ALWAYS_EXTERNAL,
  findPackageDir,
  isNativePackage,
  packageNameOf,
  readPackageJson,
} from "./packages.ts";

/** What the code is built for; the manifest names it. */
export const NODE_MAJOR = 24;
export const BUNDLE_MAP = `${BUNDLE_ENTRY}.map`;

export interface BuildOptions {
  /** More packages to leave outside. */
  readonly external?: readonly string[];
  /** Export conditions beside Node's own. */
  readonly conditions?: readonly string[];
}

export interface BuiltCode {
  readonly code: string;
  readonly map: string;
  /** Bare names of packages that were left outside. */
  readonly externals: readonly string[];
  /** The project's own files, relative to it. */
  readonly ownSources: readonly string[];
  /** All modules with their share of the output. */
  readonly shares: readonly { readonly path: string; readonly sizeBytes: number }[];
}

/** CommonJS dependencies may call `require`; an ES module has none of its own. */
const BANNER =
  'import { createRequire as __createRequire } from "node:module";\n' +
  "const require = __createRequire(import.meta.url);";

const leaveNativeOutside = (): Plugin => ({
  name: "leave-native-outside",
  setup: ({ onResolve }) => {
    const isNative = new Map<string, boolean>();
    onResolve({ filter: /^[^./]/ }, ({ path, resolveDir, kind }) => {
      if (kind === "entry-point" || isBuiltin(path)) return undefined;
      const name = packageNameOf(path);
      let native = isNative.get(name);
      if (native === undefined) {
        const dir = findPackageDir(name, resolveDir);
        native = dir !== undefined && isNativePackage(dir);
        isNative.set(name, native);
      }
      return native ? { path, external: true } : undefined;
    });
  },
});

const isBuildFailure = (error: unknown): error is BuildFailure =>
  error instanceof Error && "errors" in error && Array.isArray(error.errors);

const toBuildError = (error: unknown): CoppiceError => {
  if (!isBuildFailure(error)) {
    return new CoppiceError("CPC_BUNDLE_FAILED", { detail: String(error), cause: error });
  }
  const problems = error.errors.map(({ text, location }) => ({
    message: text,
    ...(location === null
      ? {}
      : { file: location.file, line: location.line, column: location.column + 1 }),
  }));
  return new CoppiceError("CPC_BUNDLE_FAILED", {
    detail: problems
      .map(({ message, file, line, column }) =>
        file === undefined ? message : `${file}:${line}:${column}: ${message}`,
      )
      .join("\n"),
    data: { problems },
  });
};

/** `<file>` inside its package, named by the nearest package.json above it. */
const labelOutside = (path: string): string => {
  const marker = `${sep}node_modules${sep}`;
  const at = path.lastIndexOf(marker);
  if (at >= 0)
    return path
      .slice(at + 1)
      .split(sep)
      .join("/");
  for (let dir = dirname(path); dir !== dirname(dir); dir = dirname(dir)) {
    const name = readPackageJson(dir)?.name;
    if (name !== undefined)
      return `node_modules/${name}/${relative(dir, path).split(sep).join("/")}`;
  }
  return `node_modules/${basename(path)}`;
};

const labeller = (dir: string) => {
  const labels = new Map<string, string>();
  return (key: string): string => {
    const known = labels.get(key);
    if (known !== undefined) return known;
    const path = resolve(dir, key);
    const isOwn = path.startsWith(dir + sep) && !path.includes(`${sep}node_modules${sep}`);
    const label = isOwn ? relative(dir, path).split(sep).join("/") : labelOutside(path);
    labels.set(key, label);
    return label;
  };
};

/** Whole comment lines and wrapper keys, so that no column that the map names is moved. */
const relabelCode = (code: string, inputs: ReadonlySet<string>, label: (key: string) => string) =>
  code
    .replaceAll(/^\/\/ (.+)$/gm, (line, key: string) =>
      inputs.has(key) ? `// ${label(key)}` : line,
    )
    .replaceAll(/^ {2}"([^"\\]+)"\(/gm, (text, key: string) =>
      inputs.has(key) ? `  "${label(key)}"(` : text,
    );

const relabelMap = (text: string, label: (key: string) => string): string => {
  const map = JSON.parse(text) as { readonly sources: readonly string[] };
  return JSON.stringify({ ...map, sources: map.sources.map((source) => label(source)) });
};

const externalsOf = (metafile: Metafile): readonly string[] => {
  const names = Object.values(metafile.outputs)
    .flatMap(({ imports }) => imports)
    .filter(({ path, external }) => external === true && !isBuiltin(path))
    .map(({ path }) => packageNameOf(path));
  return [...new Set(names)].toSorted();
};

/** @throws CPC_BUNDLE_FAILED with file, line and column of every problem */
export const buildCode = async (
  { dir, configFile }: ProjectPlace,
  options: BuildOptions = {},
): Promise<BuiltCode> => {
  const result = await build({
    absWorkingDir: dir,
    entryPoints: [configFile],
    outfile: join(dir, BUNDLE_ENTRY),
    write: false,
    metafile: true,
    bundle: true,
    platform: "node",
    format: "esm",
    target: `node${NODE_MAJOR}`,
    mainFields: ["module", "main"],
    conditions: [...(options.conditions ?? []), "module"],
    keepNames: true,
    charset: "utf8",
    legalComments: "none",
    sourcemap: "linked",
    sourcesContent: false,
    banner: { js: BANNER },
    external: [...ALWAYS_EXTERNAL, ...(options.external ?? [])],
    plugins: [leaveNativeOutside()],
    logLevel: "silent",
  }).catch((error: unknown) => {
    throw toBuildError(error);
  });
  const label = labeller(dir);
  const inputs = new Set(Object.keys(result.metafile.inputs));
  const textOf = (suffix: string): string =>
    result.outputFiles.find(({ path }) => path.endsWith(suffix))?.text ?? "";
  const output = Object.entries(result.metafile.outputs).find(([path]) =>
    path.endsWith(".mjs"),
  )?.[1];
  return {
    code: relabelCode(textOf(".mjs"), inputs, label),
    map: relabelMap(textOf(".map"), label),
    externals: externalsOf(result.metafile),
    ownSources: [...inputs]
      .map(label)
      .filter((path) => !path.startsWith("node_modules/"))
      .toSorted(),
    shares: Object.entries(output?.inputs ?? {}).map(([key, { bytesInOutput }]) => ({
      path: label(key),
      sizeBytes: bytesInOutput,
    })),
  };
};
