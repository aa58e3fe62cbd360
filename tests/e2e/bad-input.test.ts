/**
 * Bad input and bad surroundings, as a person meets them: a sentence that says what was expected and
 * what came, a code, an exit code, and nothing half done.
 */
import { spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdirSync, readdirSync } from "node:fs";
import { connect } from "node:net";
import { open, symlink } from "node:fs/promises";
import { createHash } from "node:crypto";
import { join } from "node:path";
import { type Client, createClient } from "@coppice/contract";
import { silentLogger } from "@coppice/core";
import { freePort } from "@coppice/local";
import { openDatabase } from "@coppice/store";
import {
  hasRedis,
  ownRedis,
  tempDir,
  testDoorbellDatabase,
  testPostgres,
  waitUntil,
} from "@coppice/testing";
import { Redis } from "ioredis";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Api, deploy, type Fleet, openFleet, projectToken } from "./fleet.ts";
import { type Ended, type Environment, run } from "./program.ts";
import { type Files, newProject, type Project } from "./project.ts";

const DISK_BYTES = 16 * 1024 * 1024;

const GOOD = `
import { definePipeline, defineProject, defineStep } from "@coppice/sdk";
import { z } from "zod";

const answer = (name: string, make: () => unknown) =>
  definePipeline({
    name,
    steps: ({ step }) => void step("only", defineStep({ output: z.any(), run: make })),
  });
const circle: unknown[] = [];
circle.push(circle);

const flood = definePipeline({
  name: "flood",
  steps: ({ step }) =>
    void step("only", defineStep({
      run: () => {
        console.log("the beginning");
        for (let line = 0; line < 20_000; line += 1) console.log("x".repeat(1023));
        console.log("the end");
      },
    })),
});
const stored = (name: string, file: string, sizeBytes: number) =>
  definePipeline({
    name,
    steps: ({ step }) =>
      void step("only", defineStep({
        output: z.any(),
        run: async (ctx) => {
          const bytes = Buffer.alloc(sizeBytes);
          for (let at = 0; at < sizeBytes; at += 4) bytes.writeUInt32LE(at, at);
          const ref = await ctx.artifacts.put(file, bytes);
          await ctx.artifacts.file(ref);
          return ref;
        },
      })),
  });

export default defineProject({
  name: "bad-input",
  pipelines: [
    answer("bigint", () => ({ n: 1n })),
    answer("circle", () => circle),
    answer("callable", () => ({ f: () => 1 })),
    flood,
    stored("too-much", "all.bin", ${2 * DISK_BYTES}),
    stored("fits", "part.bin", 1024),
    stored("escaping", "../../escaped.bin", 1024),
    definePipeline({
      name: "typed",
      params: z.object({ seed: z.number().int().max(10) }),
      steps: ({ step }) => void step("only", defineStep({ run: () => undefined })),
    }),
  ],
});
`;

/** A project whose one pipeline has these steps, past the compiler that would refuse them. */
const withSteps = (steps: string): Files => ({
  "coppice.config.ts": `
import { definePipeline, defineProject, defineStep } from "@coppice/sdk";
const nothing = defineStep({ run: () => undefined });
export default defineProject({
  name: "bad-input",
  pipelines: [definePipeline({ name: "bad", steps: ({ step }) => { ${steps} } })],
});
`,
});

const withFiles = (globs: string): Files => ({
  "coppice.config.ts": `
import { definePipeline, defineProject, defineStep } from "@coppice/sdk";
const nothing = defineStep({ run: () => undefined });
export default defineProject({
  name: "bad-input",
  files: [${globs}],
  pipelines: [definePipeline({ name: "bad", steps: ({ step }) => void step("a", nothing) })],
});
`,
});

let fleet: Fleet;
let api: Api;
let client: Client;
let token: string;
let project: Project;
let home: Awaited<ReturnType<typeof tempDir>>;
let disk: string | undefined;

/** A small disk for the artifacts, where we may mount one. */
const mountDisk = (at: string): string | undefined => {
  mkdirSync(at);
  const args = ["-t", "tmpfs", "-o", `size=${DISK_BYTES}`, "tmpfs", at];
  return spawnSync("mount", args).status === 0 ? at : undefined;
};

beforeAll(async () => {
  home = await tempDir("bad-input");
  disk = mountDisk(join(home.path, "disk"));
  fleet = await openFleet({
    doorbell: "postgres",
    env: { COPPICE_ARTIFACTS: join(home.path, "disk", "artifacts") },
  });
  api = await fleet.startApi();
  await fleet.startScheduler();
  await fleet.startWorker(api, "worker");
  token = await projectToken(api, "bad-input");
  client = createClient({ server: api.server, token });
  project = await newProject({ "coppice.config.ts": GOOD });
  await deploy(project, api, token);
}, 120_000);

afterAll(async () => {
  await project?.[Symbol.asyncDispose]();
  await fleet?.[Symbol.asyncDispose]();
  if (disk !== undefined) spawnSync("umount", [disk]);
  await home?.remove();
}, 60_000);

const filesUnder = (dir: string): string[] =>
  readdirSync(dir, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => entry.name);

/** How the only step of a pipeline ended. */
const outcomeOf = async (pipeline: string) => {
  const { id } = await client.runs.submit({ body: { pipeline } });
  const state = async (): Promise<string> => (await client.runs.get({ params: { run: id } })).state;
  const what = `${pipeline} to end`;
  await waitUntil(async () => (await state()) !== "running", { what, timeoutMs: 60_000 });
  const only = await client.items.get({ params: { run: id, step: "only", item: 0 } });
  return { id, state: await state(), only };
};

describe("a definition", () => {
  const deployBad = async (
    files: Files,
    prepare: (dir: string) => Promise<void> = async () => undefined,
  ): Promise<Ended> => {
    await using bad = await newProject(files);
    await prepare(bad.dir);
    const env = { COPPICE_SERVER_URL: api.server, COPPICE_TOKEN: token };
    const before = filesUnder(join(home.path, "disk"));
    const ended = await run("coppice", ["deploy"], { cwd: bad.dir, env });
    expect(filesUnder(join(home.path, "disk"))).toEqual(before);
    const { items } = await client.pipelines.list();
    expect(items.map(({ name }) => name)).not.toContain("bad");
    return ended;
  };

  test.each([
    [
      "in a circle names the circle",
      withSteps(`
        const a = step("a", nothing, { after: [{ key: "b" }] });
        step("b", nothing, { after: [a] });`),
      /CPC_PIPELINE_CYCLE\n.*a → b → a|CPC_PIPELINE_CYCLE\n.*b → a → b/,
    ],
    [
      "with an unknown step names it and guesses",
      withSteps(`step("load", nothing); step("b", nothing, { after: [{ key: "laod" }] });`),
      /CPC_UNKNOWN_REFERENCE\n.*laod.*load/,
    ],
    [
      "with one key twice names both lines",
      withSteps(`step("a", nothing);\nstep("a", nothing);`),
      /CPC_DUPLICATE_ID\n.*coppice\.config\.ts:6 and coppice\.config\.ts:7/,
    ],
    [
      "with one pipeline in two files names both",
      {
        "coppice.config.ts": `
import { defineProject } from "@coppice/sdk";
import { one } from "./one.ts";
import { two } from "./two.ts";
export default defineProject({ name: "bad-input", pipelines: [one, two] });`,
        ...Object.fromEntries(
          ["one", "two"].map((name) => [
            `${name}.ts`,
            `import { definePipeline, defineStep } from "@coppice/sdk";
export const ${name} = definePipeline({
  name: "bad",
  steps: ({ step }) => void step("a", defineStep({ run: () => undefined })),
});`,
          ]),
        ),
      },
      /CPC_DUPLICATE_ID\n.*one\.ts:\d.*two\.ts:\d/,
    ],
    [
      "that reaches out of the project by a glob is refused",
      withFiles(`"../*.txt"`),
      /CPC_PATH_ESCAPES\n.*"\.\.\/\*\.txt"/,
    ],
    [
      "with a glob that finds nothing says which",
      withFiles(`"data/*.csv"`),
      /CPC_INVALID_CONFIG\n.*data\/\*\.csv/,
    ],
  ])("%s", async (_title, files, says) => {
    const { code, stdout, stderr } = await deployBad(files);
    expect([code, stdout]).toEqual([2, ""]);
    expect(stderr).toMatch(says);
  });

  test("that reaches out of the project by a link is refused", async () => {
    const linked = await deployBad(withFiles(`"data/*"`), async (dir) => {
      mkdirSync(join(dir, "data"));
      await symlink("/etc/hostname", join(dir, "data/hostname"));
    });
    expect(linked.code).toBe(2);
    expect(linked.stderr).toMatch(/CPC_PATH_ESCAPES\n.*data\/hostname/);
  });

  test("over the bundle's limit lists its largest files", async () => {
    const { code, stderr } = await deployBad(withFiles(`"data/*"`), async (dir) => {
      mkdirSync(join(dir, "data"));
      for (const [name, mib] of [
        ["large.bin", 40],
        ["small.bin", 20],
      ] as const) {
        const file = await open(join(dir, "data", name), "w");
        await file.truncate(mib * 1024 * 1024);
        await file.close();
      }
    });
    expect(code).toBe(2);
    expect(stderr).toMatch(/CPC_BUNDLE_TOO_LARGE\n.*at most 50\.0 MiB/);
    expect(stderr).toMatch(/40\.0 MiB {2}data\/large\.bin\n.*20\.0 MiB {2}data\/small\.bin/);
  });
});

describe("a request", () => {
  const post = async (path: string, body: unknown, headers: Record<string, string> = {}) => {
    const response = await fetch(api.server + path, {
      method: "POST",
      headers: {
        authorization: `Bearer ${token}`,
        "content-type": "application/json",
        ...headers,
      },
      body: JSON.stringify(body),
    });
    return { status: response.status, body: (await response.json()) as Record<string, unknown> };
  };

  test("with parameters off their schema names each by pointer and starts nothing", async () => {
    const before = (await client.runs.list()).items.length;
    for (const [params, pointer] of [
      [{}, "/params"],
      [{ seed: "7" }, "/params/seed"],
      [{ seed: 11 }, "/params/seed"],
      [{ seed: 7, sead: 1 }, "/params"],
    ] as const) {
      const { status, body } = await post("/v1/runs", { pipeline: "typed", params });
      expect([params, status, body["code"]]).toEqual([params, 422, "CPC_INVALID_PARAMS"]);
      const pointers = (body["errors"] as { pointer: string }[]).map((error) => error.pointer);
      expect(pointers.some((found) => found.startsWith(pointer))).toBe(true);
    }
    expect((await client.runs.list()).items.length).toBe(before);
  });

  test("sent again under its key is the same run; another under that key is refused", async () => {
    const headers = { "idempotency-key": "once" };
    const before = (await client.runs.list({ query: { pipeline: "typed" } })).items.length;
    const body = { pipeline: "typed", params: { seed: 1 } };
    const first = await post("/v1/runs", body, headers);
    const again = await post("/v1/runs", body, headers);
    expect([first.status, again.body["id"]]).toEqual([201, first.body["id"]]);
    const other = await post("/v1/runs", { ...body, params: { seed: 2 } }, headers);
    expect([other.status, other.body["code"]]).toEqual([422, "CPC_IDEMPOTENCY_MISMATCH"]);
    const { items } = await client.runs.list({ query: { pipeline: "typed" } });
    expect(items.length).toBe(before + 1);
  });

  /** As it stands: fetch would straighten the path. */
  const rawGet = async (path: string): Promise<string> =>
    new Promise((resolve, reject) => {
      const socket = connect(Number(new URL(api.server).port), "127.0.0.1");
      let text = "";
      socket.setEncoding("utf8").on("data", (part: string) => (text += part));
      socket.once("close", () => resolve(text));
      socket.once("error", reject);
      const lines = [`GET ${path} HTTP/1.1`, "host: 127.0.0.1", `authorization: Bearer ${token}`];
      socket.write(`${[...lines, "connection: close"].join("\r\n")}\r\n\r\n`);
    });

  test("for a path that leaves its folder finds nothing", async () => {
    for (const up of ["../", "..%2f", "%2e%2e/", "..%5c", "%252e%252e%252f"]) {
      for (const prefix of [
        "/v1/artifacts/",
        "/queues/static/",
        "/queues/",
        "/docs/js/",
        "/docs/",
      ]) {
        const path = `${prefix}${up.repeat(12)}etc/passwd`;
        const answer = await rawGet(path);
        expect(`${path} ${answer}`).toMatch(/ HTTP\/1\.1 4\d\d /);
        expect(answer).not.toContain("root:");
      }
    }
  });
});

describe("a step", () => {
  test.each(["bigint", "circle", "callable"])(
    "whose output can't be written as JSON (%s) fails with its reason",
    async (pipeline) => {
      const { state, only } = await outcomeOf(pipeline);
      expect([state, only.state, only.output]).toEqual(["failed", "failed", null]);
      expect(only.error).toMatchObject({ code: "CPC_OUTPUT_INVALID" });
      expect(only.error?.message.length).toBeGreaterThan(60);
      expect(only.attempts).toHaveLength(1);
    },
    60_000,
  );

  test("that floods its log succeeds; both ends are kept and the loss is said", async () => {
    const { id, state } = await outcomeOf("flood");
    expect(state).toBe("succeeded");
    let sizeBytes = 0;
    let text = "";
    for await (const chunk of client.logs({ run: id, step: "only", item: 0, attempt: 1 })) {
      sizeBytes += Buffer.byteLength(chunk.text);
      text = (text + chunk.text.replaceAll(/x{1023}\n/g, "")).slice(-100_000);
    }
    expect(sizeBytes).toBeLessThan(11 * 1024 * 1024);
    expect(text).toMatch(/^the beginning\n/);
    expect(text).toMatch(/"droppedBytes":\d+/);
    expect(text).toMatch(/the end\n$/);
  }, 60_000);

  test("that names an artifact by a way out of its folder writes nothing there", async () => {
    const { state, only } = await outcomeOf("escaping");
    expect([state, only.error]).toEqual(["succeeded", null]);
    const written = filesUnder(fleet.dir).concat(filesUnder(home.path));
    expect(written.filter((name) => name.includes("escaped"))).toEqual([]);
  }, 60_000);
});

describe("a full disk", () => {
  test("ends an upload with 507 and leaves nothing; what fits goes on", async (context) => {
    if (disk === undefined) context.skip("no tmpfs can be mounted here");
    const before = filesUnder(disk ?? "").toSorted();
    const bytes = new Uint8Array(randomBytes(2 * DISK_BYTES));
    const digest = createHash("sha256").update(bytes).digest("hex");
    await expect(client.bundles.put({ params: { digest }, body: bytes })).rejects.toMatchObject({
      code: "CPC_DISK_FULL",
      data: { status: 507 },
    });
    expect(filesUnder(disk ?? "").toSorted()).toEqual(before);
    const { state } = await outcomeOf("fits");
    expect(state).toBe("succeeded");
  }, 60_000);

  test("is what a step's artifact fails with, and its run says so", async (context) => {
    if (disk === undefined) context.skip("no tmpfs can be mounted here");
    const before = filesUnder(disk ?? "").toSorted();
    const { id, state, only } = await outcomeOf("too-much");
    expect([state, only.error?.code]).toEqual(["failed", "CPC_DISK_FULL"]);
    expect(filesUnder(disk ?? "").toSorted()).toEqual(before);
    expect((await client.runs.artifacts({ params: { run: id } })).items).toEqual([]);
  }, 60_000);
});

describe("a server", () => {
  const SERVERS = [
    ["coppice-api", []],
    ["coppice-scheduler", []],
  ] as const;

  /** Each of them ends by itself with 1, one sentence with its code, and no secret. */
  const expectRefusal = async (env: Environment, says: RegExp, secrets: readonly string[] = []) => {
    await using folder = await tempDir("server");
    for (const [bin, args] of SERVERS) {
      const ended = await run(bin, args, {
        cwd: folder.path,
        env: { COPPICE_PORT: "0", COPPICE_SCHEDULER_PORT: "0", ...env },
      });
      expect([bin, ended.code, ended.signal]).toEqual([bin, 1, null]);
      expect(ended.stderr).toMatch(says);
      for (const secret of secrets) expect(ended.stdout + ended.stderr).not.toContain(secret);
    }
  };

  test("without its database says what, where and what to try", async () => {
    const port = await freePort();
    const env = {
      COPPICE_DATABASE_URL: `postgres://someone:hunter2@127.0.0.1:${port}/none`,
      COPPICE_DOORBELL_DATABASE_URL: `postgres://someone:hunter2@127.0.0.1:${port}/bell`,
    };
    const says = new RegExp(
      `^CPC_DATABASE_UNREACHABLE: .*127\\.0\\.0\\.1:${port}.*\\n.*COPPICE_DATABASE_URL`,
    );
    await expectRefusal(env, says, ["hunter2"]);
    await using folder = await tempDir("server");
    for (const args of [["migrate"], ["token", "create"]]) {
      const ended = await run("coppice", args, { cwd: folder.path, env });
      expect([args, ended.code, ended.stdout]).toEqual([args, 1, ""]);
      expect(ended.stderr).toMatch(/^CPC_DATABASE_UNREACHABLE: /m);
    }
  }, 60_000);

  test("without its Redis, or with one that evicts, does not start", async (context) => {
    if (!(await hasRedis())) context.skip("there is no Redis");
    await using database = await testPostgres();
    const port = await freePort();
    await expectRefusal(
      {
        COPPICE_DATABASE_URL: database.url,
        COPPICE_REDIS_URL: `redis://:hunter2@127.0.0.1:${port}`,
      },
      new RegExp(`^CPC_REDIS_UNREACHABLE: .*127\\.0\\.0\\.1:${port}.*\\n.*COPPICE_REDIS_URL`),
      ["hunter2"],
    );
    await using redis = await ownRedis();
    const admin = new Redis(redis.server.url);
    await admin.config("SET", "maxmemory-policy", "allkeys-lru");
    await expectRefusal(
      { COPPICE_DATABASE_URL: database.url, COPPICE_REDIS_URL: redis.server.url },
      /^CPC_REDIS_EVICTS: .*allkeys-lru.*\n.*maxmemory-policy noeviction/,
    );
    expect(await admin.keys("*"), "nothing was written there").toEqual([]);
    await admin.quit();
  }, 60_000);

  test("does not touch a schema that is newer than itself, nor run on an older one", async () => {
    await using database = await testPostgres();
    await using doorbell = await testDoorbellDatabase();
    const logger = silentLogger;
    const db = openDatabase({ url: database.url, applicationName: "test", logger });
    try {
      const env = {
        COPPICE_DATABASE_URL: database.url,
        COPPICE_DOORBELL_DATABASE_URL: doorbell.url,
      };
      await db.query(
        "insert into schema_migration (number, name, sha256) values (999999, 'later', '')",
      );
      const newer = /^CPC_DATABASE_TOO_NEW: .*999999.*\n.*newer version of Coppice/m;
      await expectRefusal(env, newer);
      await using folder = await tempDir("server");
      const migrate = await run("coppice-api", ["migrate"], { cwd: folder.path, env });
      expect(migrate.code).toBe(1);
      expect(migrate.stderr).toMatch(newer);
      await db.query("delete from schema_migration");
      await expectRefusal(env, /^CPC_DATABASE_TOO_OLD: .*\n.*coppice migrate/);
    } finally {
      await db.close();
    }
  }, 60_000);

  test("names every variable that is missing or wrong, at once", async () => {
    await using folder = await tempDir("server");
    const ended = await run("coppice-api", [], {
      cwd: folder.path,
      env: { COPPICE_PORT: "many", COPPICE_DATABASE_URL: "mysql://x" },
    });
    expect(ended.code).toBe(1);
    for (const name of ["COPPICE_PORT", "COPPICE_DATABASE_URL", "COPPICE_REDIS_URL"]) {
      expect(ended.stderr).toContain(name);
    }
    const worker = await run("coppice-worker", ["--slots", "0"], { cwd: folder.path });
    expect(worker.code).toBe(1);
    expect(worker.stderr).toMatch(/^CPC_INVALID_CONFIG[^]*COPPICE_TOKEN/);
  });
});
