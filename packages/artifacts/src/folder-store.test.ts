import { spawnSync } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as fc from "fast-check";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import type { ArtifactStore } from "./artifact-store.ts";
import { verifiedBody } from "./body-blocks.ts";
import { openArtifactStore } from "./open-artifact-store.ts";

const parent = mkdtempSync(join(tmpdir(), "coppice-artifacts-"));
const root = join(parent, "store");
let store: ArtifactStore;

beforeAll(async () => {
  store = await openArtifactStore(root);
});
beforeEach(() => {
  for (const shard of readdirSync(join(root, "sha256"))) {
    rmSync(join(root, "sha256", shard), { recursive: true });
  }
});
afterAll(() => rmSync(parent, { recursive: true }));

const hexOf = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");
const pathOf = (sha256: string): string => join(root, "sha256", sha256.slice(0, 2), sha256);
const staged = (): string[] => readdirSync(join(root, "staging"));
const filesUnder = (folder: string): string[] =>
  readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => !entry.isDirectory())
    .map((entry) => join(entry.parentPath, entry.name));
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

describe("a folder store", () => {
  test("bytes go in by any chunks and come out whole and in any range", async () => {
    const input = fc.uint8Array({ maxLength: 5000 });
    const size = fc.integer({ min: 1, max: 700 });
    const edge = fc.nat({ max: 6000 });
    const check = async (raw: Uint8Array, chunk: number, a: number, b: number): Promise<void> => {
      const bytes = Buffer.from(raw);
      const sha256 = hexOf(bytes);
      const { sizeBytes } = await store.put(sha256, pieces(bytes, chunk));
      expect(sizeBytes).toBe(bytes.length);
      expect(await store.size(sha256)).toBe(bytes.length);
      expect(await gather((await store.get(sha256)).body)).toEqual(bytes);
      const [start, end] = a < b ? [a, b] : [b, a];
      const part = await store.get(sha256, { start, end });
      expect(await gather(part.body)).toEqual(bytes.subarray(start, end));
      expect(part.contentBytes).toBe(bytes.subarray(start, end).length);
    };
    await fc.assert(fc.asyncProperty(input, size, edge, edge, check), { numRuns: 50 });
    expect(staged()).toEqual([]);
  });

  test("bytes beyond one block arrive in order", async () => {
    const bytes = randomBytes(3 * 1_048_576 + 17);
    const sha256 = hexOf(bytes);
    expect(await store.put(sha256, pieces(bytes, 65_537))).toMatchObject({ isNew: true });
    expect(hexOf(readFileSync(pathOf(sha256)))).toBe(sha256);
    expect(lstatSync(pathOf(sha256)).mode & 0o777).toBe(0o600);
  });

  test("a sender that reuses its buffer does no harm", async () => {
    const buffer = Buffer.alloc(300_000);
    async function* reusing(): AsyncGenerator<Uint8Array> {
      for (let round = 0; round < 10; round += 1) {
        yield buffer.fill(round);
        buffer.fill(255);
      }
    }
    const whole = Buffer.concat(Array.from({ length: 10 }, (_, at) => Buffer.alloc(300_000, at)));
    await store.put(hexOf(whole), reusing());
    expect(hexOf(readFileSync(pathOf(hexOf(whole))))).toBe(hexOf(whole));
  });

  test("a second put is told so, makes the artifact young and heals it", async () => {
    const bytes = randomBytes(100);
    const sha256 = hexOf(bytes);
    await store.put(sha256, bytes);
    writeFileSync(pathOf(sha256), "spoiled");
    utimesSync(pathOf(sha256), 1000, 1000);
    expect(await store.put(sha256, bytes)).toEqual({ sizeBytes: 100, isNew: false });
    expect(readFileSync(pathOf(sha256))).toEqual(bytes);
    expect(Date.now() - lstatSync(pathOf(sha256)).mtimeMs).toBeLessThan(60_000);
  });

  test("concurrent puts of one digest all succeed and leave one file", async () => {
    const bytes = randomBytes(2_000_000);
    const sha256 = hexOf(bytes);
    const puts = Array.from({ length: 12 }, () => store.put(sha256, pieces(bytes, 100_000)));
    for (const result of await Promise.all(puts)) expect(result.sizeBytes).toBe(2_000_000);
    expect(filesUnder(root)).toEqual([pathOf(sha256)]);
    expect(hexOf(readFileSync(pathOf(sha256)))).toBe(sha256);
  });

  test("a reader keeps its bytes while the artifact is deleted", async () => {
    const bytes = randomBytes(3_000_000);
    await store.put(hexOf(bytes), bytes);
    const { body } = await store.get(hexOf(bytes));
    await store.delete(hexOf(bytes));
    expect(hexOf(await gather(body))).toBe(hexOf(bytes));
    expect(await store.has(hexOf(bytes))).toBe(false);
    await store.delete(hexOf(bytes));
  });

  test("what isn't there is CPC_ARTIFACT_NOT_FOUND", async () => {
    const missing = { code: "CPC_ARTIFACT_NOT_FOUND" };
    await expect(store.get("0".repeat(64))).rejects.toMatchObject(missing);
    await expect(store.size("0".repeat(64))).rejects.toMatchObject(missing);
  });

  test("the list gives digests, sizes and times, and nothing else that lies there", async () => {
    const bytes = randomBytes(10);
    await store.put(hexOf(bytes), bytes);
    writeFileSync(join(root, "sha256", hexOf(bytes).slice(0, 2), "README"), "x");
    const entries = await collect(store.list());
    expect(entries).toHaveLength(1);
    expect(entries[0]).toMatchObject({ sha256: hexOf(bytes), sizeBytes: 10 });
    expect(Math.abs(Date.now() - (entries[0]?.modifiedAtMs ?? 0))).toBeLessThan(60_000);
  });
});

describe("a put that fails", () => {
  const nothingKept = (): void => {
    expect(filesUnder(root)).toEqual([]);
  };

  test("for another digest leaves nothing", async () => {
    const failing = store.put(hexOf(Buffer.from("other")), randomBytes(2_000_000));
    await expect(failing).rejects.toMatchObject({ code: "CPC_ARTIFACT_CORRUPT" });
    nothingKept();
  });

  test("for its sender leaves nothing and keeps the sender's error", async () => {
    async function* broken(): AsyncGenerator<Uint8Array> {
      yield randomBytes(1_500_000);
      throw new Error("the sender went away");
    }
    await expect(store.put("0".repeat(64), broken())).rejects.toThrow("sender went away");
    nothingKept();
  });

  test("for its size stops the sender before the end", async () => {
    let sent = 0;
    async function* endless(): AsyncGenerator<Uint8Array> {
      for (;;) {
        sent += 1;
        yield randomBytes(1000);
      }
    }
    const failing = store.put("0".repeat(64), endless(), { sizeMaxBytes: 10_000 });
    await expect(failing).rejects.toMatchObject({ code: "CPC_BODY_TOO_LARGE" });
    expect(sent).toBe(11);
    const whole = store.put("0".repeat(64), randomBytes(11), { sizeMaxBytes: 10 });
    await expect(whole).rejects.toMatchObject({ code: "CPC_BODY_TOO_LARGE" });
    nothingKept();
  });

  test("for an abort ends at once, even while the sender is silent", async () => {
    const controller = new AbortController();
    async function* silent(): AsyncGenerator<Uint8Array> {
      yield randomBytes(1000);
      setImmediate(() => controller.abort(new Error("enough")));
      await new Promise(() => undefined);
    }
    const { signal } = controller;
    await expect(store.put("0".repeat(64), silent(), { signal })).rejects.toThrow("enough");
    await expect(store.put("0".repeat(64), randomBytes(1), { signal })).rejects.toThrow("enough");
    nothingKept();
  });

  test("for a full disk is CPC_DISK_FULL and leaves nothing; smaller puts go on", async (context) => {
    const mount = join(parent, "tiny");
    mkdirSync(mount);
    const args = ["-t", "tmpfs", "-o", "size=2m", "tmpfs", mount];
    const mounted = spawnSync("mount", args, { encoding: "utf8" });
    if (mounted.status !== 0) {
      context.skip(`no tmpfs can be mounted here: ${mounted.stderr ?? String(mounted.error)}`);
    }
    try {
      const tiny = await openArtifactStore(join(mount, "store"));
      const bytes = randomBytes(5_000_000);
      const full = { code: "CPC_DISK_FULL" };
      await expect(tiny.put(hexOf(bytes), pieces(bytes, 65_536))).rejects.toMatchObject(full);
      await expect(tiny.put(hexOf(bytes), bytes)).rejects.toMatchObject(full);
      expect(filesUnder(mount)).toEqual([]);
      const small = randomBytes(1_000_000);
      expect(await tiny.put(hexOf(small), small)).toMatchObject({ sizeBytes: 1_000_000 });
    } finally {
      spawnSync("umount", [mount]);
    }
  });
});

describe("names", () => {
  const hex = fc.constantFrom(..."0123456789abcdef".split(""));
  const trap = fc.constantFrom("/", "..", "../", ".", "\0", "\\", "%2e", "~", "A", "\n", "staging");
  const hostile = fc
    .array(fc.oneof({ weight: 5, arbitrary: hex }, { weight: 1, arbitrary: trap }), {
      maxLength: 70,
    })
    .map((parts) => parts.join(""))
    .filter((name) => !/^[0-9a-f]{64}$/.test(name));

  test("that aren't digests are refused by every call and touch nothing", async () => {
    const canary = join(parent, "canary");
    writeFileSync(canary, "alive");
    const before = filesUnder(parent);
    const fixed = ["../../canary", canary, `${"0".repeat(64)}/..`, `${"0".repeat(64)}\n`, ""];
    const check = async (name: string): Promise<void> => {
      const refused = { code: "CPC_INVALID_INPUT" };
      await expect(store.put(name, Buffer.from("x"))).rejects.toMatchObject(refused);
      await expect(store.get(name)).rejects.toMatchObject(refused);
      await expect(store.has(name)).rejects.toMatchObject(refused);
      await expect(store.size(name)).rejects.toMatchObject(refused);
      await expect(store.delete(name)).rejects.toMatchObject(refused);
    };
    for (const name of fixed) await check(name);
    await fc.assert(fc.asyncProperty(hostile, check), { numRuns: 200 });
    expect(filesUnder(parent)).toEqual(before);
    expect(readFileSync(canary, "utf8")).toBe("alive");
  });

  test("that are symbolic links are not followed", async () => {
    const secret = join(parent, "secret");
    writeFileSync(secret, "secret");
    const sha256 = "ab".repeat(32);
    mkdirSync(join(root, "sha256", "ab"));
    symlinkSync(secret, pathOf(sha256));
    await expect(store.get(sha256)).rejects.toMatchObject({ code: "CPC_PATH_ESCAPES" });
    expect(await store.has(sha256)).toBe(false);
    expect(await collect(store.list())).toEqual([]);
    await store.delete(sha256);
    expect(existsSync(secret)).toBe(true);
  });

  test.each([
    [{ start: -1 }],
    [{ start: 3, end: 2 }],
    [{ start: 0.5 }],
    [{ start: 0, end: Number.NaN }],
  ])("a range of %j is refused", async (range) => {
    const bytes = randomBytes(10);
    await store.put(hexOf(bytes), bytes);
    const refused = { code: "CPC_INVALID_INPUT" };
    await expect(store.get(hexOf(bytes), range)).rejects.toMatchObject(refused);
  });
});

describe("opening a folder store", () => {
  test("removes what a killed process left in staging a day ago, and nothing younger", async () => {
    const folder = join(parent, "reopened");
    await openArtifactStore(folder);
    const old = join(folder, "staging", "old");
    const young = join(folder, "staging", "young");
    writeFileSync(old, "x");
    writeFileSync(young, "x");
    const atSeconds = Date.now() / 1000 - 86_500;
    utimesSync(old, atSeconds, atSeconds);
    await openArtifactStore(folder);
    expect(existsSync(old)).toBe(false);
    expect(existsSync(young)).toBe(true);
  });
});

describe("verifiedBody", () => {
  test("passes the right bytes through and fails at the end of others", async () => {
    const bytes = randomBytes(1000);
    expect(await gather(verifiedBody(hexOf(bytes), pieces(bytes, 99)))).toEqual(bytes);
    const corrupt = gather(verifiedBody("0".repeat(64), pieces(bytes, 99)));
    await expect(corrupt).rejects.toMatchObject({ code: "CPC_ARTIFACT_CORRUPT" });
  });
});
