/**
 * Artifacts in S3 or what speaks like it: `<prefix>/sha256/<digest>`. The only importer of the S3
 * client.
 *
 * What must stay true: an object appears only after its digest was checked: small bodies are held
 * until then, larger ones are parts of an upload that is completed after the check and aborted
 * otherwise. The store checks what it received against a sha256 of ours. Credentials and region
 * come the way of every AWS client.
 */
import { createHash } from "node:crypto";
import { Readable } from "node:stream";
import {
  AbortMultipartUploadCommand,
  CompleteMultipartUploadCommand,
  type CompletedPart,
  CreateMultipartUploadCommand,
  DeleteObjectCommand,
  GetObjectCommand,
  HeadObjectCommand,
  paginateListObjectsV2,
  PutObjectCommand,
  S3Client,
  UploadPartCommand,
} from "@aws-sdk/client-s3";
import { CoppiceError, isCoppiceError } from "@coppice/core";
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

export interface S3StoreOptions {
  /** An S3-compatible store; addressed by path, as most of them want. */
  readonly endpoint?: string | undefined;
  readonly region?: string | undefined;
  readonly credentials?: { readonly accessKeyId: string; readonly secretAccessKey: string };
}

/** The store allows 10,000 parts: 160 GB. */
const PART_BYTES = 16_777_216;

const statusOf = (error: unknown): number | undefined => {
  const metadata: unknown =
    error instanceof Error && "$metadata" in error ? error.$metadata : undefined;
  if (typeof metadata !== "object" || metadata === null || !("httpStatusCode" in metadata)) {
    return undefined;
  }
  return typeof metadata.httpStatusCode === "number" ? metadata.httpStatusCode : undefined;
};

/** The client's answer, or an error of ours: CPC_ARTIFACT_NOT_FOUND for an object that is missing. */
const answerOf = async <T>(sha256: string, answer: Promise<T>): Promise<T> => {
  try {
    return await answer;
  } catch (error) {
    const status = statusOf(error);
    const name = error instanceof Error ? error.name : "an error";
    if (status === 404 && name !== "NoSuchBucket") throw notFound(sha256);
    const detail = `The S3 client got ${name}${status === undefined ? "" : ` (HTTP ${status})`}.`;
    throw new CoppiceError("CPC_ARTIFACTS_UNREACHABLE", { detail, cause: error });
  }
};

const base64Sha256 = (bytes: Buffer): string => createHash("sha256").update(bytes).digest("base64");

interface Place {
  readonly Bucket: string;
  readonly Key: string;
}

/** An upload in parts, begun with the first part. */
class PartUpload {
  readonly #client: S3Client;
  readonly #sha256: string;
  readonly #place: Place;
  readonly #parts: CompletedPart[] = [];
  #uploadId: string | undefined;

  constructor(client: S3Client, sha256: string, place: Place) {
    this.#client = client;
    this.#sha256 = sha256;
    this.#place = place;
  }

  get isBegun(): boolean {
    return this.#uploadId !== undefined;
  }

  async add(bytes: Buffer): Promise<void> {
    this.#uploadId ??= await this.#begin();
    const PartNumber = this.#parts.length + 1;
    const ChecksumSHA256 = base64Sha256(bytes);
    const part = { UploadId: this.#uploadId, PartNumber, ChecksumSHA256, Body: bytes };
    const command = new UploadPartCommand({ ...this.#place, ...part });
    const { ETag } = await answerOf(this.#sha256, this.#client.send(command));
    this.#parts.push({ PartNumber, ChecksumSHA256, ...(ETag === undefined ? {} : { ETag }) });
  }

  async #begin(): Promise<string> {
    const input = { ...this.#place, ChecksumAlgorithm: "SHA256" } as const;
    const command = new CreateMultipartUploadCommand(input);
    const { UploadId } = await answerOf(this.#sha256, this.#client.send(command));
    if (UploadId !== undefined) return UploadId;
    const detail = "expected an upload id. Received: none.";
    throw new CoppiceError("CPC_ARTIFACTS_UNREACHABLE", { detail });
  }

  async complete(): Promise<void> {
    const MultipartUpload = { Parts: this.#parts };
    const input = { ...this.#place, UploadId: this.#uploadId, MultipartUpload };
    await answerOf(this.#sha256, this.#client.send(new CompleteMultipartUploadCommand(input)));
  }

  /** Best effort: a bucket's lifecycle rule removes what stays. */
  async abort(): Promise<void> {
    if (this.#uploadId === undefined) return;
    const input = { ...this.#place, UploadId: this.#uploadId };
    await this.#client.send(new AbortMultipartUploadCommand(input)).catch(() => undefined);
  }
}

class S3Store implements ArtifactStore {
  readonly #client: S3Client;
  readonly #bucket: string;
  readonly #prefix: string;

  constructor(client: S3Client, bucket: string, prefix: string) {
    this.#client = client;
    this.#bucket = bucket;
    this.#prefix = `${prefix === "" ? "" : `${prefix}/`}sha256/`;
  }

  #placeOf(sha256: string): Place {
    return { Bucket: this.#bucket, Key: `${this.#prefix}${requireSha256(sha256)}` };
  }

  async put(
    sha256: string,
    body: AsyncIterable<Uint8Array> | Uint8Array,
    options: PutOptions = {},
  ): Promise<PutResult> {
    const place = this.#placeOf(sha256);
    const upload = new PartUpload(this.#client, sha256, place);
    try {
      const isNew = !(await this.has(sha256));
      const hash = createHash("sha256");
      let sizeBytes = 0;
      // One block is held back: whether a put is small is known only when its body ends.
      let held: Buffer = Buffer.alloc(0);
      for await (const block of blocksOf(body, PART_BYTES, options)) {
        if (sizeBytes > 0) await upload.add(held);
        hash.update(block);
        sizeBytes += block.byteLength;
        held = block;
      }
      requireSameDigest(sha256, hash.digest("hex"));
      if (upload.isBegun) {
        await upload.add(held);
        await upload.complete();
      } else {
        const ChecksumSHA256 = base64Sha256(held);
        const command = new PutObjectCommand({ ...place, Body: held, ChecksumSHA256 });
        await answerOf(sha256, this.#client.send(command));
      }
      return { sizeBytes, isNew };
    } catch (error) {
      await upload.abort();
      throw error;
    }
  }

  async get(sha256: string, range?: ByteRange): Promise<ArtifactBody> {
    const place = this.#placeOf(sha256);
    const sizeBytes = await this.size(sha256);
    const { start, end } = clampRange(range, sizeBytes);
    const contentBytes = end - start;
    if (contentBytes === 0) return { sizeBytes, contentBytes, body: Readable.from([]) };
    const Range = contentBytes === sizeBytes ? undefined : `bytes=${start}-${end - 1}`;
    const command = new GetObjectCommand(Range === undefined ? place : { ...place, Range });
    const { Body } = await answerOf(sha256, this.#client.send(command));
    if (!(Body instanceof Readable)) throw new TypeError("expected a stream from the S3 client.");
    return { sizeBytes, contentBytes, body: Body };
  }

  async has(sha256: string): Promise<boolean> {
    try {
      await this.size(sha256);
      return true;
    } catch (error) {
      if (isCoppiceError(error) && error.code === "CPC_ARTIFACT_NOT_FOUND") return false;
      throw error;
    }
  }

  async size(sha256: string): Promise<number> {
    const command = new HeadObjectCommand(this.#placeOf(sha256));
    const { ContentLength } = await answerOf(sha256, this.#client.send(command));
    return ContentLength ?? 0;
  }

  async delete(sha256: string): Promise<void> {
    const command = new DeleteObjectCommand(this.#placeOf(sha256));
    await answerOf(sha256, this.#client.send(command));
  }

  async *list(): AsyncGenerator<ArtifactEntry> {
    const input = { Bucket: this.#bucket, Prefix: this.#prefix };
    const pages = paginateListObjectsV2({ client: this.#client }, input);
    for (;;) {
      const page = await answerOf("any", pages.next());
      if (page.done === true) return;
      for (const { Key = "", Size = 0, LastModified } of page.value.Contents ?? []) {
        const sha256 = Key.slice(this.#prefix.length);
        if (!isSha256(sha256) || LastModified === undefined) continue;
        yield { sha256, sizeBytes: Size, modifiedAtMs: LastModified.getTime() };
      }
    }
  }

  async close(): Promise<void> {
    this.#client.destroy();
  }
}

export const openS3Store = (
  bucket: string,
  prefix: string,
  options: S3StoreOptions,
): ArtifactStore => {
  const { endpoint, region, credentials } = options;
  const client = new S3Client({
    // Our own sha256 is sent; further checksums would exclude stores that don't know them.
    requestChecksumCalculation: "WHEN_REQUIRED",
    responseChecksumValidation: "WHEN_REQUIRED",
    ...(endpoint === undefined ? {} : { endpoint, forcePathStyle: true, region: "us-east-1" }),
    ...(region === undefined ? {} : { region }),
    ...(credentials === undefined ? {} : { credentials }),
  });
  return new S3Store(client, bucket, prefix);
};
