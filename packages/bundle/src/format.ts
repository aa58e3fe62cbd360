/**
 * The bundle's file format, without esbuild: what the server and the workers need of this room.
 *
 * A bundle is one sequence of bytes: the line `coppice-bundle 1`, one line of JSON that names the
 * files with sizes and digests, then their bytes one after another. No times, owners or modes,
 * files sorted by path: the same files give the same bytes; the SHA-256 over all of them is the
 * code's digest. What must stay true: nothing is written before the whole archive was checked, and
 * never outside the given folder.
 */
import { createHash, randomUUID } from "node:crypto";
import { mkdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";

import { CoppiceError } from "@coppice/core";
import { pipelineSchema } from "@coppice/pipeline";
import { z } from "zod";

import { requireInnerPath } from "./bundle-path.ts";

/** The module whose default export is the project. */
export const BUNDLE_ENTRY = "bundle.mjs";
export const MANIFEST_FILE = "manifest.json";
const MAGIC = "coppice-bundle 1\n";
const HEADER_BYTES_MAX = 16 * 1024 * 1024;
const FILES_MAX = 100_000;

const sha256Schema = z.string().regex(/^[0-9a-f]{64}$/);

export const bundleManifestSchema = z.strictObject({
  /** Of the wire between a worker and its child; a worker refuses one that it does not speak. */
  protocol: z.number().int(),
  project: z.string(),
  entry: z.literal(BUNDLE_ENTRY),
  pipelines: z.array(pipelineSchema),
  /** Packages left outside, with the versions that the author has installed. */
  externals: z.record(z.string(), z.string()),
  /** Data files that came by the project's `files` globs. */
  files: z.array(z.string()),
  /** The project's own source files, by path, with digests. */
  sources: z.record(z.string(), sha256Schema),
  /** Major version of Node that the code was built for. */
  node: z.number().int(),
});
export type BundleManifest = z.infer<typeof bundleManifestSchema>;

const headerSchema = z.strictObject({
  files: z
    .array(
      z.strictObject({
        path: z.string(),
        sizeBytes: z.number().int().min(0),
        sha256: sha256Schema,
      }),
    )
    .max(FILES_MAX),
});

export interface PackedBundle {
  readonly bytes: Uint8Array;
  /** SHA-256 over all bytes, in hexadecimal. */
  readonly digest: string;
}

export const digestOf = (bytes: Uint8Array): string =>
  createHash("sha256").update(bytes).digest("hex");

/** @throws CPC_PATH_ESCAPES */
export const packBundle = (files: ReadonlyMap<string, Uint8Array>): PackedBundle => {
  const entries = [...files]
    .map(([path, bytes]) => ({ path: requireInnerPath(path), bytes }))
    .toSorted((a, b) => (a.path < b.path ? -1 : 1));
  const header = JSON.stringify({
    files: entries.map(({ path, bytes }) => ({
      path,
      sizeBytes: bytes.byteLength,
      sha256: digestOf(bytes),
    })),
  });
  const bytes = Buffer.concat([
    Buffer.from(`${MAGIC}${header}\n`),
    ...entries.map((entry) => entry.bytes),
  ]);
  return { bytes, digest: digestOf(bytes) };
};

const corrupt = (detail: string): CoppiceError =>
  new CoppiceError("CPC_BUNDLE_CORRUPT", { detail });

const parseHeader = (bytes: Buffer) => {
  if (bytes.subarray(0, MAGIC.length).toString("latin1") !== MAGIC) {
    throw corrupt("it does not begin as a bundle of format 1 does");
  }
  const end = bytes.subarray(0, MAGIC.length + HEADER_BYTES_MAX).indexOf("\n", MAGIC.length);
  if (end < 0) throw corrupt("its header has no end");
  let json: unknown;
  try {
    json = JSON.parse(bytes.toString("utf8", MAGIC.length, end));
  } catch (cause) {
    throw new CoppiceError("CPC_BUNDLE_CORRUPT", { detail: "its header is not JSON", cause });
  }
  const header = headerSchema.safeParse(json);
  if (!header.success) throw corrupt(`its header is not valid: ${z.prettifyError(header.error)}`);
  return { files: header.data.files, bodyAt: end + 1 };
};

/**
 * The files of a bundle, checked: names, sizes and digests; views on the given bytes, no copies.
 * @throws CPC_BUNDLE_CORRUPT, CPC_PATH_ESCAPES
 */
export const readBundle = (bytes: Uint8Array): ReadonlyMap<string, Uint8Array> => {
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const { files, bodyAt } = parseHeader(buffer);
  const found = new Map<string, Uint8Array>();
  let at = bodyAt;
  for (const { path, sizeBytes, sha256 } of files) {
    const body = buffer.subarray(at, at + sizeBytes);
    at += sizeBytes;
    if (body.byteLength !== sizeBytes || digestOf(body) !== sha256) {
      throw corrupt(`the bytes of ${JSON.stringify(path)} do not have their digest`);
    }
    if (found.has(path)) throw corrupt(`it has ${JSON.stringify(path)} twice`);
    found.set(requireInnerPath(path), body);
  }
  if (at !== buffer.byteLength) throw corrupt("it goes on after its last file");
  for (const path of found.keys()) {
    for (let end = path.indexOf("/"); end !== -1; end = path.indexOf("/", end + 1)) {
      const above = path.slice(0, end);
      if (found.has(above)) throw corrupt(`${JSON.stringify(above)} is a file and a folder`);
    }
  }
  return found;
};

const parseManifest = (bytes: Uint8Array | undefined): BundleManifest => {
  if (bytes === undefined) throw corrupt(`it has no ${MANIFEST_FILE}`);
  let json: unknown;
  try {
    json = JSON.parse(Buffer.from(bytes).toString("utf8"));
  } catch (cause) {
    throw new CoppiceError("CPC_BUNDLE_CORRUPT", { detail: "its manifest is not JSON", cause });
  }
  const manifest = bundleManifestSchema.safeParse(json);
  if (manifest.success) return manifest.data;
  throw corrupt(`its manifest is not valid: ${z.prettifyError(manifest.error)}`);
};

/** @throws CPC_BUNDLE_CORRUPT, CPC_PATH_ESCAPES */
export const manifestOf = (bytes: Uint8Array): BundleManifest =>
  parseManifest(readBundle(bytes).get(MANIFEST_FILE));

/** Of an unpacked bundle. */
export const readManifest = async (dir: string): Promise<BundleManifest> =>
  parseManifest(await readFile(join(dir, MANIFEST_FILE)));

const isTaken = (error: unknown): boolean =>
  error instanceof Error && "code" in error && ["ENOTEMPTY", "EEXIST"].includes(String(error.code));

/**
 * Writes the files to `dir`, which appears whole or not at all; where it is there already (another
 * process was faster), it is left as it is.
 * @param digest checked over all bytes where it is given
 * @throws CPC_BUNDLE_CORRUPT, CPC_PATH_ESCAPES
 */
export const unpackBundle = async (
  bytes: Uint8Array,
  dir: string,
  digest?: string,
): Promise<BundleManifest> => {
  if (digest !== undefined && digestOf(bytes) !== digest) {
    throw corrupt(`expected the digest ${digest}. Received: ${digestOf(bytes)}`);
  }
  const files = readBundle(bytes);
  const manifest = parseManifest(files.get(MANIFEST_FILE));
  const partial = `${dir}.${randomUUID()}.partial`;
  try {
    for (const [path, body] of files) {
      const target = join(partial, path);
      await mkdir(dirname(target), { recursive: true });
      await writeFile(target, body, { flag: "wx", mode: 0o444 });
    }
    await rename(partial, dir).catch((error: unknown) => {
      if (!isTaken(error)) throw error;
    });
  } finally {
    await rm(partial, { recursive: true, force: true });
  }
  return manifest;
};
