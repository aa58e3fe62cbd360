/**
 * Bodies in motion: chunks of any size become blocks of one size, and a body is checked on its way.
 *
 * What must stay true: a block is a copy that nobody else holds, so that the bytes that are hashed
 * are the bytes that are written, whatever the sender does with its buffers.
 */
import { createHash } from "node:crypto";
import { CoppiceError } from "@coppice/core";
import { type PutOptions, requireSameDigest, requireSha256 } from "./artifact-store.ts";

async function* oneChunk(chunk: Uint8Array): AsyncGenerator<Uint8Array> {
  yield chunk;
}

/** Ends with the signal's reason even while the source is silent. */
async function* abortable(
  source: AsyncIterable<Uint8Array>,
  signal: AbortSignal,
): AsyncGenerator<Uint8Array> {
  signal.throwIfAborted();
  const listening = new AbortController();
  const aborted = new Promise<never>((_, reject) => {
    const onAbort = (): void => reject(signal.reason);
    signal.addEventListener("abort", onAbort, { once: true, signal: listening.signal });
  });
  aborted.catch(() => undefined);
  const iterator = source[Symbol.asyncIterator]();
  let isDone = false;
  try {
    for (;;) {
      const next = await Promise.race([iterator.next(), aborted]);
      isDone = next.done === true;
      if (next.done === true) return;
      yield next.value;
    }
  } finally {
    listening.abort();
    // Not awaited: a generator that waits for its source would keep the abort waiting too.
    if (!isDone) iterator.return?.()?.catch(() => undefined);
  }
}

const tooLarge = (sizeMaxBytes: number): CoppiceError =>
  new CoppiceError("CPC_BODY_TOO_LARGE", { detail: `expected at most ${sizeMaxBytes} bytes.` });

/** Blocks of exactly `blockBytes`, the last one shorter; none for an empty body. */
export async function* blocksOf(
  body: AsyncIterable<Uint8Array> | Uint8Array,
  blockBytes: number,
  options: PutOptions = {},
): AsyncGenerator<Buffer> {
  const { sizeMaxBytes = Number.POSITIVE_INFINITY, signal } = options;
  const isWhole = body instanceof Uint8Array;
  if (isWhole && body.byteLength > sizeMaxBytes) throw tooLarge(sizeMaxBytes);
  const source = isWhole ? oneChunk(body) : body;
  // A small whole body needs no more room than itself.
  const roomBytes = isWhole ? Math.min(blockBytes, Math.max(1, body.byteLength)) : blockBytes;
  let block = Buffer.allocUnsafeSlow(roomBytes);
  let filled = 0;
  let total = 0;
  for await (const chunk of signal === undefined ? source : abortable(source, signal)) {
    total += chunk.byteLength;
    if (total > sizeMaxBytes) throw tooLarge(sizeMaxBytes);
    for (let at = 0; at < chunk.byteLength; ) {
      const part = chunk.subarray(at, at + roomBytes - filled);
      block.set(part, filled);
      at += part.byteLength;
      filled += part.byteLength;
      if (filled < roomBytes) continue;
      yield block;
      signal?.throwIfAborted();
      block = Buffer.allocUnsafeSlow(roomBytes);
      filled = 0;
    }
  }
  if (filled > 0) yield block.subarray(0, filled);
}

/**
 * Passes a whole artifact through and fails at its end where it isn't what its name says.
 * @throws CPC_ARTIFACT_CORRUPT
 */
export async function* verifiedBody(
  sha256: string,
  body: AsyncIterable<Uint8Array>,
): AsyncGenerator<Uint8Array> {
  requireSha256(sha256);
  const hash = createHash("sha256");
  for await (const chunk of body) {
    hash.update(chunk);
    yield chunk;
  }
  requireSameDigest(sha256, hash.digest("hex"));
}
