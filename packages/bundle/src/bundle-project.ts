/**
 * A project as a bundle: built, loaded once to see what it defines, packed with its data files.
 * The same files give the same digest, wherever the project lies and whoever builds it.
 */
import { readFile } from "node:fs/promises";
import { join } from "node:path";

import { PROTOCOL_VERSION } from "@coppice/contract";
import { CoppiceError } from "@coppice/core";

import {
  BUNDLE_MAP,
  type BuildOptions,
  type BuiltCode,
  buildCode,
  NODE_MAJOR,
} from "./build-code.ts";
import { type DataFile, findDataFiles, readDataFile } from "./collect-files.ts";
import { requireProject } from "./find-project.ts";
import {
  BUNDLE_ENTRY,
  type BundleManifest,
  digestOf,
  MANIFEST_FILE,
  packBundle,
  type PackedBundle,
} from "./format.ts";
import type { ProjectIndex } from "./index-cache.ts";
import { type LoadOptions, loadProject } from "./load-project.ts";
import { findPackageDir, readPackageJson } from "./packages.ts";

export interface BundleOptions extends BuildOptions, LoadOptions {
  /** Of the whole bundle. */
  readonly sizeMaxBytes?: number;
}

export interface ProjectBundle extends PackedBundle {
  readonly manifest: BundleManifest;
}

const SIZE_MAX_BYTES = 50 * 1024 * 1024;
const RESERVED = new Set([BUNDLE_ENTRY, BUNDLE_MAP, MANIFEST_FILE]);

const formatBytes = (bytes: number): string =>
  bytes < 1024 * 1024
    ? `${Math.ceil(bytes / 1024)} KiB`
    : `${(bytes / 1024 / 1024).toFixed(1)} MiB`;

const requireSize = (
  sizeBytes: number,
  sizeMaxBytes: number,
  built: BuiltCode,
  files: readonly DataFile[],
): void => {
  if (sizeBytes <= sizeMaxBytes) return;
  const largest = [...built.shares, ...files]
    .toSorted((a, b) => b.sizeBytes - a.sizeBytes)
    .slice(0, 10);
  throw new CoppiceError("CPC_BUNDLE_TOO_LARGE", {
    detail:
      `expected at most ${formatBytes(sizeMaxBytes)}. Received: ${formatBytes(sizeBytes)}. ` +
      `The largest files:\n${largest
        .map(({ path, sizeBytes: size }) => `  ${formatBytes(size).padStart(10)}  ${path}`)
        .join("\n")}`,
    data: { sizeBytes, sizeMaxBytes, largest },
    hint: "Keep data out of the bundle: fetch it in a step and store it as an artifact.",
  });
};

const externalVersions = (dir: string, names: readonly string[]): Record<string, string> =>
  Object.fromEntries(
    names.map((name) => {
      const found = findPackageDir(name, dir);
      const version = found === undefined ? undefined : readPackageJson(found)?.version;
      if (version === undefined) {
        throw new CoppiceError("CPC_EXTERNAL_MISSING", {
          detail: `the project imports ${name}, which is not installed`,
          hint: `Install it: npm install ${name}`,
        });
      }
      return [name, version];
    }),
  );

/** What a project defines, without packing it. */
export const indexProject = async (
  projectDir: string,
  options: BundleOptions = {},
): Promise<ProjectIndex> => {
  const place = requireProject(projectDir);
  const built = await buildCode(place, options);
  return loadProject(place.dir, built, externalVersions(place.dir, built.externals), options);
};

const sourceDigests = async (
  dir: string,
  paths: readonly string[],
): Promise<Record<string, string>> =>
  Object.fromEntries(
    await Promise.all(
      paths.map(async (path) => [path, digestOf(await readFile(join(dir, path)))] as const),
    ),
  );

/**
 * @throws CPC_PROJECT_NOT_FOUND, CPC_BUNDLE_FAILED, CPC_INDEX_FAILED, CPC_BUNDLE_TOO_LARGE, and
 * what the project's definitions throw
 */
export const bundleProject = async (
  projectDir: string,
  options: BundleOptions = {},
): Promise<ProjectBundle> => {
  const place = requireProject(projectDir);
  const { dir } = place;
  const sizeMaxBytes = options.sizeMaxBytes ?? SIZE_MAX_BYTES;
  const built = await buildCode(place, options);
  const externals = externalVersions(dir, built.externals);
  const index = await loadProject(dir, built, externals, options);
  const files = await findDataFiles(dir, index.files);
  const reserved = files.find(({ path }) => RESERVED.has(path));
  if (reserved !== undefined) {
    throw new CoppiceError("CPC_INVALID_CONFIG", {
      detail: `a data file may not be named ${reserved.path}: the bundle has one of its own`,
    });
  }
  const code = Buffer.from(built.code);
  const map = Buffer.from(built.map);
  const dataBytes = files.reduce((total, { sizeBytes }) => total + sizeBytes, 0);
  // Before anything large is read: the limit also keeps this process small.
  requireSize(code.byteLength + map.byteLength + dataBytes, sizeMaxBytes, built, files);
  const manifest: BundleManifest = {
    protocol: PROTOCOL_VERSION,
    project: index.name,
    entry: BUNDLE_ENTRY,
    pipelines: [...index.pipelines],
    externals,
    files: files.map(({ path }) => path),
    sources: await sourceDigests(dir, built.ownSources),
    node: NODE_MAJOR,
  };
  const contents = new Map<string, Uint8Array>([
    [BUNDLE_ENTRY, code],
    [BUNDLE_MAP, map],
    [MANIFEST_FILE, Buffer.from(JSON.stringify(manifest))],
  ]);
  for (const file of files) contents.set(file.path, await readDataFile(dir, file));
  const packed = packBundle(contents);
  requireSize(packed.bytes.byteLength, sizeMaxBytes, built, files);
  return { ...packed, manifest };
};
