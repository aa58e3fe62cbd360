import { createHash, randomBytes } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import type { ArtifactStore } from "./artifact-store.ts";
import { openArtifactStore } from "./open-artifact-store.ts";

/**
 * The few calls of S3 that the store uses, spoken over real HTTP; signatures are not checked, the
 * checksums that the client sends are.
 */
const objects = new Map<string, { bytes: Buffer; at: Date }>();
const uploads = new Map<string, Map<number, Buffer>>();
const calls: string[] = [];
const PAGE = 2;
let failWith: number | undefined;

const sha256Base64 = (bytes: Buffer): string => createHash("sha256").update(bytes).digest("base64");

const answer = (response: ServerResponse, status: number, body = ""): void => {
  response.writeHead(status, { "content-type": "application/xml" }).end(body);
};

const error = (response: ServerResponse, status: number, code: string): void =>
  answer(response, status, `<Error><Code>${code}</Code><Message>no</Message></Error>`);

const list = (url: URL, bucket: string, response: ServerResponse): void => {
  const prefix = `${bucket}/${url.searchParams.get("prefix") ?? ""}`;
  const after = url.searchParams.get("continuation-token") ?? "";
  const keys = [...objects.keys()]
    .filter((key) => key.startsWith(prefix) && key > after)
    .toSorted();
  const page = keys.slice(0, PAGE);
  const contents = page.map((key) => {
    const { bytes, at } = objects.get(key) ?? { bytes: Buffer.alloc(0), at: new Date(0) };
    const name = key.slice(bucket.length + 1);
    const time = at.toISOString();
    const facts = `<Size>${bytes.length}</Size><LastModified>${time}</LastModified>`;
    return `<Contents><Key>${name}</Key>${facts}</Contents>`;
  });
  const isMore = keys.length > PAGE;
  const next = isMore ? `<NextContinuationToken>${page.at(-1)}</NextContinuationToken>` : "";
  const flag = `<IsTruncated>${isMore}</IsTruncated>`;
  answer(response, 200, `<ListBucketResult>${flag}${next}${contents.join("")}</ListBucketResult>`);
};

const read = (request: IncomingMessage, key: string, response: ServerResponse): void => {
  const bytes = objects.get(key)?.bytes;
  if (bytes === undefined) return error(response, 404, "NoSuchKey");
  const range = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? "");
  const part = range ? bytes.subarray(Number(range[1]), Number(range[2]) + 1) : bytes;
  response.writeHead(range ? 206 : 200, { "content-length": part.length });
  response.end(request.method === "HEAD" ? undefined : part);
};

const write = (request: IncomingMessage, url: URL, key: string, body: Buffer): string => {
  const claimed = request.headers["x-amz-checksum-sha256"];
  if (request.method === "PUT" && claimed !== sha256Base64(body)) return "BadDigest";
  const parts = uploads.get(url.searchParams.get("uploadId") ?? "");
  if (parts === undefined) objects.set(key, { bytes: body, at: new Date() });
  else parts.set(Number(url.searchParams.get("partNumber")), body);
  return "";
};

const complete = (id: string, key: string, response: ServerResponse): void => {
  const parts = [...(uploads.get(id) ?? [])].toSorted(([a], [b]) => a - b);
  objects.set(key, { bytes: Buffer.concat(parts.map(([, bytes]) => bytes)), at: new Date() });
  uploads.delete(id);
  answer(response, 200, "<CompleteMultipartUploadResult></CompleteMultipartUploadResult>");
};

const handle = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk);
  const body = Buffer.concat(chunks);
  const url = new URL(request.url ?? "/", "http://s3");
  const key = decodeURIComponent(url.pathname.slice(1));
  const [bucket = ""] = key.split("/");
  const uploadId = url.searchParams.get("uploadId");
  calls.push(`${request.method} ${url.searchParams.get("x-id") ?? ""}`.trim());
  if (failWith !== undefined) return error(response, failWith, "AccessDenied");
  if (bucket !== "bucket") return error(response, 404, "NoSuchBucket");
  if (request.method === "GET" && url.searchParams.has("list-type"))
    return list(url, bucket, response);
  if (request.method === "GET" || request.method === "HEAD") return read(request, key, response);
  if (request.method === "POST" && url.searchParams.has("uploads")) {
    uploads.set("upload-1", new Map());
    const result = "<UploadId>upload-1</UploadId>";
    return answer(
      response,
      200,
      `<InitiateMultipartUploadResult>${result}</InitiateMultipartUploadResult>`,
    );
  }
  if (request.method === "POST" && uploadId !== null) return complete(uploadId, key, response);
  if (request.method === "DELETE") {
    if (uploadId === null) objects.delete(key);
    else uploads.delete(uploadId);
    return answer(response, 204);
  }
  const problem = write(request, url, key, body);
  if (problem !== "") return error(response, 400, problem);
  response.writeHead(200, { etag: `"${key.length}"` }).end();
};

let server: Server;
let store: ArtifactStore;
const options = () => ({
  endpoint: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
  credentials: { accessKeyId: "test", secretAccessKey: "test" },
});

beforeAll(async () => {
  server = createServer((request, response) => {
    handle(request, response).catch((cause: unknown) =>
      response.destroy(new Error("handler", { cause })),
    );
  });
  await new Promise<void>((done) => {
    server.listen(0, "127.0.0.1", done);
  });
  store = await openArtifactStore("s3://bucket/some/prefix/", options());
});
afterAll(async () => {
  await store.close();
  server.closeAllConnections();
  server.close();
});
beforeEach(() => {
  objects.clear();
  uploads.clear();
  calls.length = 0;
  failWith = undefined;
});

const hexOf = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");
const gather = async (body: AsyncIterable<Uint8Array>): Promise<Buffer> => {
  const chunks: Uint8Array[] = [];
  for await (const chunk of body) chunks.push(chunk);
  return Buffer.concat(chunks);
};
const collect = async <T>(items: AsyncIterable<T>): Promise<T[]> => {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
};
async function* pieces(bytes: Buffer, size: number): AsyncGenerator<Buffer> {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
}

describe("an S3 store", () => {
  test("a small artifact is one object under its digest, whole and in ranges", async () => {
    const bytes = randomBytes(5000);
    const sha256 = hexOf(bytes);
    expect(await store.has(sha256)).toBe(false);
    expect(await store.put(sha256, pieces(bytes, 777))).toEqual({ sizeBytes: 5000, isNew: true });
    expect(await store.put(sha256, bytes)).toEqual({ sizeBytes: 5000, isNew: false });
    expect([...objects.keys()]).toEqual([`bucket/some/prefix/sha256/${sha256}`]);
    expect(await store.size(sha256)).toBe(5000);
    expect(await gather((await store.get(sha256)).body)).toEqual(bytes);
    const part = await store.get(sha256, { start: 4990, end: 9999 });
    expect(part).toMatchObject({ sizeBytes: 5000, contentBytes: 10 });
    expect(await gather(part.body)).toEqual(bytes.subarray(4990));
    await store.delete(sha256);
    await store.delete(sha256);
    expect(await store.has(sha256)).toBe(false);
  });

  test("an empty artifact can be kept", async () => {
    const sha256 = hexOf(Buffer.alloc(0));
    expect(await store.put(sha256, pieces(Buffer.alloc(0), 1))).toMatchObject({ sizeBytes: 0 });
    expect(await gather((await store.get(sha256)).body)).toHaveLength(0);
  });

  test("a large artifact goes up in parts and comes back whole", async () => {
    const bytes = randomBytes(40 * 1_048_576 + 3);
    const sha256 = hexOf(bytes);
    const result = await store.put(sha256, pieces(bytes, 1_000_003));
    expect(result).toEqual({ sizeBytes: bytes.length, isNew: true });
    expect(calls.filter((call) => call === "PUT UploadPart")).toHaveLength(3);
    expect(hexOf(await gather((await store.get(sha256)).body))).toBe(sha256);
    expect(uploads.size).toBe(0);
  });

  test.each([[1000], [20 * 1_048_576]])(
    "%i bytes with another digest leave nothing",
    async (size) => {
      const failing = store.put(hexOf(Buffer.from("other")), pieces(randomBytes(size), 500_000));
      await expect(failing).rejects.toMatchObject({ code: "CPC_ARTIFACT_CORRUPT" });
      expect(objects.size).toBe(0);
      expect(uploads.size).toBe(0);
    },
  );

  test("a body that fails on its way leaves nothing and keeps its own error", async () => {
    async function* broken(): AsyncGenerator<Uint8Array> {
      yield randomBytes(33 * 1_048_576);
      throw new Error("the sender went away");
    }
    await expect(store.put(hexOf(Buffer.from("x")), broken())).rejects.toThrow("sender went away");
    expect(calls).toContain("PUT UploadPart");
    expect(objects.size + uploads.size).toBe(0);
  });

  test("what isn't there is CPC_ARTIFACT_NOT_FOUND", async () => {
    const missing = { code: "CPC_ARTIFACT_NOT_FOUND" };
    await expect(store.get("0".repeat(64))).rejects.toMatchObject(missing);
    await expect(store.size("0".repeat(64))).rejects.toMatchObject(missing);
  });

  test("a refusal by the store and a missing bucket are told apart from that", async () => {
    const unreachable = { code: "CPC_ARTIFACTS_UNREACHABLE" };
    failWith = 403;
    await expect(store.size("0".repeat(64))).rejects.toMatchObject(unreachable);
    failWith = undefined;
    const other = await openArtifactStore("s3://other", options());
    const bytes = Buffer.from("x");
    await expect(other.put(hexOf(bytes), bytes)).rejects.toMatchObject(unreachable);
    await expect(collect(other.list())).rejects.toMatchObject(unreachable);
    await other.close();
  });

  test("the list goes over all pages and leaves foreign objects out", async () => {
    const digests: string[] = [];
    for (let index = 0; index < 5; index += 1) {
      const bytes = Buffer.from(`artifact ${index}`);
      digests.push(hexOf(bytes));
      await store.put(hexOf(bytes), bytes);
    }
    objects.set("bucket/some/prefix/sha256/README", { bytes: Buffer.from("x"), at: new Date() });
    const listed: string[] = [];
    for await (const { sha256, sizeBytes, modifiedAtMs } of store.list()) {
      listed.push(sha256);
      expect(sizeBytes).toBe(10);
      expect(Math.abs(Date.now() - modifiedAtMs)).toBeLessThan(60_000);
    }
    expect(listed.toSorted()).toEqual(digests.toSorted());
  });
});

describe("a location", () => {
  test("is refused quickly, however long it is", async () => {
    const refused = { code: "CPC_INVALID_CONFIG" };
    const location = `s3://bucket/${"a".repeat(50_000)} `;
    await expect(openArtifactStore(location)).rejects.toMatchObject(refused);
  });

  test.each([
    ["s3://"],
    ["s3://Bucket"],
    ["s3://bucket/../x"],
    ["s3://bucket//x"],
    ["s3://bucket/a b"],
    ["gs://bucket"],
  ])("%s is refused", async (location) => {
    const refused = { code: "CPC_INVALID_CONFIG" };
    await expect(openArtifactStore(location)).rejects.toMatchObject(refused);
  });
});
