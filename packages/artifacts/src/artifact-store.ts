/**
 * Immutable bytes by sha256: what every store does, wherever it keeps them.
 *
 * What must stay true: bytes are visible under a digest only when all of them are there and have
 * that digest; a digest is 64 lower-case hexadecimal digits, checked before anything else, so a name
 * never becomes a path; putting twice is harmless and makes the artifact young again, so a collector
 * that goes by age does not take what was just put.
 */
import type { Readable } from "node:stream";
import { CoppiceError } from "@coppice/core";

export interface PutOptions {
  /** More than this is refused with CPC_BODY_TOO_LARGE while it arrives. */
  readonly sizeMaxBytes?: number;
  readonly signal?: AbortSignal;
}

export interface PutResult {
  readonly sizeBytes: number;
  /** A hint for counters: two puts of one digest at the same time may both be told true. */
  readonly isNew: boolean;
}

/** Half open, like `slice`; what lies beyond the artifact's end is left out. */
export interface ByteRange {
  readonly start: number;
  readonly end?: number;
}

export interface ArtifactBody {
  /** Of the whole artifact, whatever the range. */
  readonly sizeBytes: number;
  /** Of the body. */
  readonly contentBytes: number;
  /** Must be read to its end or destroyed. Its digest is not checked: see `verifiedBody`. */
  readonly body: Readable;
}

export interface ArtifactEntry {
  readonly sha256: string;
  readonly sizeBytes: number;
  /** When it was last put. */
  readonly modifiedAtMs: number;
}

export interface ArtifactStore {
  /** @throws CPC_ARTIFACT_CORRUPT, CPC_BODY_TOO_LARGE, CPC_DISK_FULL; then nothing was kept */
  put(
    sha256: string,
    body: AsyncIterable<Uint8Array> | Uint8Array,
    options?: PutOptions,
  ): Promise<PutResult>;
  /** @throws CPC_ARTIFACT_NOT_FOUND */
  get(sha256: string, range?: ByteRange): Promise<ArtifactBody>;
  has(sha256: string): Promise<boolean>;
  /** @throws CPC_ARTIFACT_NOT_FOUND */
  size(sha256: string): Promise<number>;
  /** Deleting what isn't there is no error. */
  delete(sha256: string): Promise<void>;
  list(): AsyncIterable<ArtifactEntry>;
  close(): Promise<void>;
}

const SHA256 = /^[0-9a-f]{64}$/;

export const isSha256 = (text: string): boolean => SHA256.test(text);

/** @throws CPC_INVALID_INPUT */
export const requireSha256 = (text: string): string => {
  if (SHA256.test(text)) return text;
  throw new CoppiceError("CPC_INVALID_INPUT", {
    detail: `expected a sha256 of 64 lower-case hexadecimal digits. Received: ${JSON.stringify(
      text.slice(0, 80),
    )}`,
  });
};

export const notFound = (sha256: string): CoppiceError =>
  new CoppiceError("CPC_ARTIFACT_NOT_FOUND", { detail: `sha256: ${sha256}` });

/** @throws CPC_ARTIFACT_CORRUPT */
export const requireSameDigest = (expected: string, actual: string): void => {
  if (expected === actual) return;
  throw new CoppiceError("CPC_ARTIFACT_CORRUPT", {
    detail: `expected sha256 ${expected}. Received: ${actual}`,
  });
};

/** Start and end inside an artifact of this size. @throws CPC_INVALID_INPUT */
export const clampRange = (
  range: ByteRange | undefined,
  sizeBytes: number,
): { start: number; end: number } => {
  const { start, end = sizeBytes } = range ?? { start: 0 };
  if (!Number.isSafeInteger(start) || !Number.isSafeInteger(end) || start < 0 || end < start) {
    throw new CoppiceError("CPC_INVALID_INPUT", {
      detail: `expected a range with 0 ≤ start ≤ end. Received: ${start} to ${end}`,
    });
  }
  return { start: Math.min(start, sizeBytes), end: Math.min(end, sizeBytes) };
};
