/**
 * Bundles on this worker's disk, by digest.
 *
 * What must stay true: the digest is checked before every load, and each child gets a copy of its
 * own: nothing that one step's code writes can be what another one runs. Two attempts that want
 * the same bundle download it once.
 */
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { mkdir, readdir, readFile, rm, stat, utimes } from "node:fs/promises";
import { join } from "node:path";

import { PROTOCOL_VERSION } from "@coppice/contract";
import { CoppiceError } from "@coppice/core";

const CACHE_BYTES_MAX = 1024 * 1024 * 1024;

/** What the supervisor needs of a bundle's manifest. */
export interface UnpackedBundle {
  readonly protocol: number;
  /** Relative to the folder. */
  readonly entry: string;
  /** Packages that the bundle leaves outside, with the author's versions. */
  readonly externals: Readonly<Record<string, string>>;
}

/** Unpacks a bundle's bytes into a folder that does not exist yet. */
export type UnpackBundle = (bytes: Uint8Array, dir: string) => Promise<UnpackedBundle>;

/** Writes the bundle's bytes to a file. */
export type FetchBundle = (file: string) => Promise<void>;

export class BundleCache {
  readonly #dir: string;
  readonly #unpack: UnpackBundle;
  readonly #fetching = new Map<string, Promise<void>>();

  constructor(dir: string, unpack: UnpackBundle) {
    this.#dir = dir;
    this.#unpack = unpack;
  }

  /**
   * @param target a folder that does not exist yet, in one that does
   * @throws CPC_BUNDLE_CORRUPT where even fresh bytes have another digest; CPC_PROTOCOL_VERSION
   */
  async unpackInto(target: string, digest: string, fetch: FetchBundle): Promise<UnpackedBundle> {
    const path = join(this.#dir, digest);
    for (const isLast of [false, true]) {
      await this.#ensure(path, digest, fetch);
      const found = await digestOf(path);
      if (found === digest) break;
      await rm(path, { force: true });
      if (isLast) {
        throw new CoppiceError("CPC_BUNDLE_CORRUPT", {
          detail: `expected the digest ${digest}. Received: ${found}`,
        });
      }
    }
    const now = new Date();
    await utimes(path, now, now).catch(() => undefined);
    const bundle = await this.#unpack(await readFile(path), target);
    if (bundle.protocol === PROTOCOL_VERSION) return bundle;
    throw new CoppiceError("CPC_PROTOCOL_VERSION", {
      detail: `expected a bundle of version ${PROTOCOL_VERSION}. Received: ${bundle.protocol}`,
    });
  }

  async #ensure(path: string, digest: string, fetch: FetchBundle): Promise<void> {
    const isThere = await stat(path).then(
      () => true,
      () => false,
    );
    if (isThere) return;
    const others = this.#fetching.get(digest);
    if (others !== undefined) {
      // Another attempt's download may end with that attempt; this one then does it itself.
      await others.catch(() => undefined);
      return await this.#ensure(path, digest, fetch);
    }
    const own = this.#download(path, fetch).finally(() => this.#fetching.delete(digest));
    this.#fetching.set(digest, own);
    await own;
  }

  async #download(path: string, fetch: FetchBundle): Promise<void> {
    await mkdir(this.#dir, { recursive: true });
    await fetch(path);
    await this.#evict(path);
  }

  /** Least recently used first; a child has its own copy, so nothing in use is lost. */
  async #evict(keep: string): Promise<void> {
    const files = await Promise.all(
      (await readdir(this.#dir)).map(async (name) => {
        const path = join(this.#dir, name);
        const info = await stat(path).catch(() => undefined);
        return { path, sizeBytes: info?.size ?? 0, usedAtMs: info?.mtimeMs ?? 0 };
      }),
    );
    let sizeBytes = files.reduce((sum, file) => sum + file.sizeBytes, 0);
    for (const file of files.toSorted((a, b) => a.usedAtMs - b.usedAtMs)) {
      if (sizeBytes <= CACHE_BYTES_MAX) return;
      if (file.path === keep || file.path.endsWith(".part")) continue;
      await rm(file.path, { force: true });
      sizeBytes -= file.sizeBytes;
    }
  }
}

const digestOf = async (path: string): Promise<string> => {
  const hash = createHash("sha256");
  try {
    for await (const chunk of createReadStream(path) as AsyncIterable<Buffer>) hash.update(chunk);
  } catch (error) {
    // Evicted between two looks: the caller fetches it again.
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return "nothing";
    throw error;
  }
  return hash.digest("hex");
};
