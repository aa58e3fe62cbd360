/**
 * Artifacts in a folder: `<root>/sha256/<ab>/<digest>`, written by way of `<root>/staging`.
 *
 * What must stay true: a file gets its final name by one rename, after all its bytes are on disk
 * and were found to have the digest; no file is opened through a symbolic link; a put that fails
 * leaves nothing; what a killed process left in staging is removed a day later, at the next open.
 */
import { createHash, randomUUID } from "node:crypto";
import { constants } from "node:fs";
import {
  type FileHandle,
  lstat,
  mkdir,
  open,
  opendir,
  readdir,
  rename,
  rm,
} from "node:fs/promises";
import { join, resolve } from "node:path";
import { Readable } from "node:stream";
import { CoppiceError } from "@coppice/core";
import {
  type ArtifactBody,
  type ArtifactEntry,
  type ArtifactStore,
  type ByteRange,
  clampRange,
  isSha256,
  notFound,
  type PutOptions,
  type PutResult,
  requireSameDigest,
  requireSha256,
} from "./artifact-store.ts";
import { blocksOf } from "./body-blocks.ts";

/** Large enough that system calls don't matter, small enough to hash without a pause. */
const BLOCK_BYTES = 1_048_576;
const STALE_STAGING_MS = 86_400_000;
const { O_CREAT, O_DIRECTORY, O_EXCL, O_NOFOLLOW, O_RDONLY, O_WRONLY } = constants;

const codeOf = (error: unknown): unknown =>
  error instanceof Error && "code" in error ? error.code : undefined;

const asOurs = (error: unknown): unknown => {
  const code = codeOf(error);
  if (code !== "ENOSPC" && code !== "EDQUOT") return error;
  return new CoppiceError("CPC_DISK_FULL", { detail: "while an artifact was kept.", cause: error });
};

const writeAll = async (handle: FileHandle, block: Buffer): Promise<void> => {
  for (let at = 0; at < block.byteLength; ) {
    const { bytesWritten } = await handle.write(block, at);
    at += bytesWritten;
  }
};

/** Hashes a block and awaits the next while the disk takes it. @throws CPC_ARTIFACT_CORRUPT */
const writeVerified = async (
  handle: FileHandle,
  sha256: string,
  body: AsyncIterable<Uint8Array> | Uint8Array,
  options: PutOptions,
): Promise<number> => {
  const hash = createHash("sha256");
  let sizeBytes = 0;
  let writing: Promise<void> = Promise.resolve();
  for await (const block of blocksOf(body, BLOCK_BYTES, options)) {
    await writing;
    writing = writeAll(handle, block);
    // Awaited above or below, or given up when the body fails: then closing waits for it.
    writing.catch(() => undefined);
    hash.update(block);
    sizeBytes += block.byteLength;
  }
  await writing;
  requireSameDigest(sha256, hash.digest("hex"));
  // Size and bytes must be on the disk before the name is; times need not be.
  await handle.datasync();
  return sizeBytes;
};

/** A rename is on the disk when its folder is. */
const syncFolder = async (path: string): Promise<void> => {
  const handle = await open(path, O_RDONLY | O_DIRECTORY);
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
};

const removeStale = async (staging: string): Promise<void> => {
  const deadlineMs = Date.now() - STALE_STAGING_MS;
  for (const name of await readdir(staging)) {
    const path = join(staging, name);
    const stat = await lstat(path).catch(() => undefined);
    if (stat !== undefined && stat.mtimeMs < deadlineMs) await rm(path, { force: true });
  }
};

class FolderStore implements ArtifactStore {
  readonly #blobs: string;
  readonly #staging: string;

  constructor(root: string) {
    this.#blobs = join(root, "sha256");
    this.#staging = join(root, "staging");
  }

  async prepare(): Promise<void> {
    await mkdir(this.#blobs, { recursive: true, mode: 0o700 });
    await mkdir(this.#staging, { recursive: true, mode: 0o700 });
    await removeStale(this.#staging);
  }

  #shardOf(sha256: string): string {
    return join(this.#blobs, requireSha256(sha256).slice(0, 2));
  }

  #pathOf(sha256: string): string {
    return join(this.#shardOf(sha256), sha256);
  }

  async put(
    sha256: string,
    body: AsyncIterable<Uint8Array> | Uint8Array,
    options: PutOptions = {},
  ): Promise<PutResult> {
    requireSha256(sha256);
    const staged = join(this.#staging, randomUUID());
    try {
      const handle = await open(staged, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600);
      let sizeBytes: number;
      try {
        sizeBytes = await writeVerified(handle, sha256, body, options);
      } finally {
        await handle.close();
      }
      const isNew = !(await this.has(sha256));
      // Also over an older copy: it makes the artifact young and heals one that the disk spoiled.
      await this.#publish(staged, sha256);
      return { sizeBytes, isNew };
    } catch (error) {
      await rm(staged, { force: true });
      throw asOurs(error);
    }
  }

  async #publish(staged: string, sha256: string): Promise<void> {
    const shard = this.#shardOf(sha256);
    const firstMade = await mkdir(shard, { recursive: true, mode: 0o700 });
    await rename(staged, this.#pathOf(sha256));
    await syncFolder(shard);
    if (firstMade !== undefined) await syncFolder(this.#blobs);
  }

  async get(sha256: string, range?: ByteRange): Promise<ArtifactBody> {
    const handle = await this.#open(sha256);
    try {
      const { size: sizeBytes } = await handle.stat();
      const { start, end } = clampRange(range, sizeBytes);
      const contentBytes = end - start;
      if (contentBytes > 0) {
        const body = handle.createReadStream({ start, end: end - 1, highWaterMark: BLOCK_BYTES });
        return { sizeBytes, contentBytes, body };
      }
      await handle.close();
      return { sizeBytes, contentBytes, body: Readable.from([]) };
    } catch (error) {
      await handle.close();
      throw error;
    }
  }

  async #open(sha256: string): Promise<FileHandle> {
    try {
      return await open(this.#pathOf(sha256), O_RDONLY | O_NOFOLLOW);
    } catch (error) {
      if (codeOf(error) === "ENOENT") throw notFound(sha256);
      if (codeOf(error) !== "ELOOP") throw error;
      const detail = `a symbolic link stands where ${sha256} should be.`;
      throw new CoppiceError("CPC_PATH_ESCAPES", { detail, cause: error });
    }
  }

  async #sizeIfThere(sha256: string): Promise<number | undefined> {
    try {
      const stat = await lstat(this.#pathOf(sha256));
      return stat.isFile() ? stat.size : undefined;
    } catch (error) {
      if (codeOf(error) === "ENOENT") return undefined;
      throw error;
    }
  }

  async has(sha256: string): Promise<boolean> {
    return (await this.#sizeIfThere(sha256)) !== undefined;
  }

  async size(sha256: string): Promise<number> {
    const sizeBytes = await this.#sizeIfThere(sha256);
    if (sizeBytes === undefined) throw notFound(sha256);
    return sizeBytes;
  }

  async delete(sha256: string): Promise<void> {
    await rm(this.#pathOf(sha256), { force: true });
  }

  async *list(): AsyncGenerator<ArtifactEntry> {
    for await (const shard of await opendir(this.#blobs)) {
      if (!shard.isDirectory()) continue;
      const folder = join(this.#blobs, shard.name);
      for (const sha256 of await readdir(folder)) {
        if (!isSha256(sha256) || !sha256.startsWith(shard.name)) continue;
        const stat = await lstat(join(folder, sha256)).catch(() => undefined);
        if (stat?.isFile() !== true) continue;
        yield { sha256, sizeBytes: stat.size, modifiedAtMs: stat.mtimeMs };
      }
    }
  }

  async close(): Promise<void> {
    // Nothing is held between calls.
  }
}

export const openFolderStore = async (folder: string): Promise<ArtifactStore> => {
  const store = new FolderStore(resolve(folder));
  try {
    await store.prepare();
  } catch (error) {
    throw asOurs(error);
  }
  return store;
};
