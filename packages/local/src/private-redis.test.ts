/** A Redis that may be killed: what it has answered for is there again afterwards. */
import { mkdtemp, readFile, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { silentLogger } from "@coppice/core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type PrivateRedis, startPrivateRedis } from "./private-redis.ts";
import { askRedis } from "./redis-command.ts";
import { isProcessAlive } from "./wait-for.ts";

const dir = await mkdtemp(join(tmpdir(), "coppice-redis-"));
const cacheDir = join(import.meta.dirname, "../../../node_modules/.cache/coppice-redis");
const failure = await startPrivateRedis({ dir, cacheDir, logger: silentLogger }).then(
  async (redis) => redis.stop(),
  (error: unknown) => error,
);

describe.skipIf(failure !== undefined && process.env["CI"] === undefined)("a private Redis", () => {
  let redis: PrivateRedis;
  const ask = async (...words: string[]) =>
    askRedis({ port: redis.port, password: new URL(redis.url).password }, ...words);

  beforeAll(async () => {
    redis = await startPrivateRedis({ dir, cacheDir, logger: silentLogger });
  });

  afterAll(async () => {
    await redis.stop();
    await rm(dir, { recursive: true, force: true });
  });

  it("has after a SIGKILL what it had before, on the same port", async () => {
    await ask("SET", "kept", "value");
    const pid = redis.pid()!;
    await redis.kill();
    expect(isProcessAlive(pid)).toBe(false);
    expect(await ask("PING")).toBeUndefined();
    await redis.restart();
    expect(redis.pid()).not.toBe(pid);
    expect(await ask("EXISTS", "kept")).toBe(":1");
  });

  it("never evicts", async () => {
    expect(await ask("CONFIG", "GET", "maxmemory-policy")).toBe("*2");
    expect(await readFile(join(dir, "redis.conf"), "utf8")).toContain("noeviction");
  });

  it("is empty after flushAll", async () => {
    await ask("SET", "gone", "value");
    await redis.flushAll();
    expect(await ask("DBSIZE")).toBe(":0");
  });

  it("answers nobody without its password, which lies in a file of ours alone", async () => {
    const refused = await askRedis({ port: redis.port, password: "wrong" }, "PING");
    expect(refused).toMatch(/^-WRONGPASS/);
    expect((await stat(join(dir, "redis.conf"))).mode & 0o777).toBe(0o600);
  });
});
