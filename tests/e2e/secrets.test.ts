/**
 * Canaries: every secret of a fleet at work is looked for in all that the fleet leaves behind: what
 * it says, what it stores, what it answers, what it is started with. None may be found anywhere but
 * where it has to be.
 */
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { type Client, createClient } from "@coppice/contract";
import { silentLogger } from "@coppice/core";
import { openDatabase } from "@coppice/store";
import { hasRedis, waitUntil } from "@coppice/testing";
import { Redis } from "ioredis";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Api, deploy, type Fleet, openFleet, projectToken } from "./fleet.ts";
import { type Program, run as runProgram, toldTo, treeOf } from "./program.ts";
import { newProject, type Project } from "./project.ts";

/** What the operator gives to a step: it is the step's own, and nobody else's. */
const GIVEN = "canary-of-the-operator-7f3a";

const CONFIG = `
import { defineProject, definePipeline, defineStep } from "@coppice/sdk";
import { z } from "zod";

const use = defineStep({
  output: z.object({ given: z.number(), names: z.array(z.string()) }),
  run: (ctx) => {
    const given = ctx.env("CANARY_KEY") ?? "";
    ctx.log.info("at work", { length: given.length });
    return {
      given: given.length,
      names: Object.keys(process.env).toSorted(),
    };
  },
});
const hold = defineStep({
  run: () => new Promise((resolve) => setTimeout(resolve, 1500)),
});
const nothing = defineStep({ run: () => null });
const broken = defineStep({
  run: () => {
    throw new Error("as it was meant to");
  },
});

export default defineProject({
  name: "vault",
  pipelines: [
    definePipeline({
      name: "use",
      steps: ({ step }) => void step("only", use, { env: ["CANARY_KEY"] }),
    }),
    definePipeline({ name: "hold", steps: ({ step }) => void step("only", hold) }),
    definePipeline({
      name: "refused",
      steps: ({ step }) => void step("only", nothing, { env: ["NOT_ALLOWED"] }),
    }),
    definePipeline({ name: "broken", steps: ({ step }) => void step("only", broken) }),
  ],
});
`;

const variableOf = (pid: number, name: string): string =>
  new RegExp(`${name}=([^\\0]*)`).exec(toldTo(pid))?.[1] ?? "";

const filesBelow = (dir: string): string[] =>
  readdirSync(dir, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name));

/** Every row of every table, as text. */
const dump = async (url: string): Promise<string> => {
  const db = openDatabase({ url, applicationName: "test", logger: silentLogger });
  try {
    const tables = await db.query<{ name: string }>(
      `select format('%I.%I', table_schema, table_name) as name from information_schema.tables
       where table_schema not in ('pg_catalog', 'information_schema')`,
    );
    const texts: string[] = [];
    for (const { name } of tables) {
      const rows = await db.query<{ text: string }>(`select t::text as text from ${name} t`);
      texts.push(name, ...rows.map(({ text }) => text));
    }
    return texts.join("\n");
  } finally {
    await db.close();
  }
};

const dumpRedis = async (url: string): Promise<string> => {
  const client = new Redis(url);
  try {
    const keys = await client.keys("*");
    const values = await Promise.all(
      keys.map(async (key) => {
        const kind = await client.type(key);
        if (kind === "hash") return JSON.stringify(await client.hgetall(key));
        if (kind === "string") return await client.get(key);
        if (kind === "list") return (await client.lrange(key, 0, "-1")).join(" ");
        if (kind === "zset") return (await client.zrange(key, 0, "-1")).join(" ");
        if (kind === "set") return (await client.smembers(key)).join(" ");
        return JSON.stringify(await client.xrange(key, "-", "+"));
      }),
    );
    return [...keys, ...values].join("\n");
  } finally {
    client.disconnect();
  }
};

describe.each(["redis", "postgres"] as const)("secrets of a fleet on %s", (doorbell) => {
  let fleet: Fleet;
  let project: Project;
  let api: Api;
  let scheduler: Program;
  let worker: Program;
  let client: Client;
  let deployToken = "";
  /** By name, so that a finding says what was found and not what it was. */
  const secrets = new Map<string, string>();
  let isMissing = false;

  beforeAll(async () => {
    isMissing = doorbell === "redis" && !(await hasRedis());
    if (isMissing) return;
    fleet = await openFleet({
      doorbell,
      // Debug says the most; and the server makes the workers' credential by itself.
      env: { COPPICE_LOG_LEVEL: "debug", COPPICE_WORKER_REDIS_URL: "" },
    });
    project = await newProject({ "coppice.config.ts": CONFIG });
    api = await fleet.startApi();
    scheduler = await fleet.startScheduler();
    worker = await fleet.startWorker(api, "worker", {
      COPPICE_LOG_LEVEL: "debug",
      COPPICE_ALLOW_ENV: "vault:CANARY_KEY",
      CANARY_KEY: GIVEN,
      NOT_ALLOWED: "canary-that-nobody-allowed",
    });
    deployToken = await projectToken(api, "vault");
    client = createClient({ server: api.server, token: deployToken });
    await deploy(project, api, deployToken);
    const bell =
      fleet.serverEnv["COPPICE_REDIS_URL"] ?? fleet.serverEnv["COPPICE_DOORBELL_DATABASE_URL"];
    secrets.set("the database's password", new URL(fleet.databaseUrl).password);
    secrets.set("the doorbell's password", new URL(bell ?? "").password);
    secrets.set("the admin token", api.adminToken);
    secrets.set("the worker's token", variableOf(worker.pid, "COPPICE_TOKEN"));
    secrets.set("the deploy token", deployToken);
    secrets.set("the variable given to a step", GIVEN);
    secrets.set("the variable given to nobody", "canary-that-nobody-allowed");
  }, 120_000);

  afterAll(async () => {
    await project?.[Symbol.asyncDispose]();
    await fleet?.[Symbol.asyncDispose]();
  }, 60_000);

  const found = (where: string, text: string, except: readonly string[] = []): string[] =>
    [...secrets].flatMap(([name, value]) =>
      !except.includes(name) && text.includes(value) ? [`${name} in ${where}`] : [],
    );

  const ends = async (pipeline: string): Promise<string> => {
    const { id } = await client.runs.submit({ body: { pipeline } });
    const state = async () => (await client.runs.get({ params: { run: id } })).state;
    await waitUntil(async () => (await state()) !== "running", {
      what: `${pipeline} to end`,
      timeoutMs: 30_000,
    });
    return id;
  };

  // The other doorbell has no such credential: no test there, rather than a skipped one.
  test.for([doorbell].filter((kind) => kind === "redis"))(
    "workers get a credential that the server made for %s, not the server's own",
    { timeout: 30_000 },
    async (_, context) => {
      context.skip(isMissing, "There is no Redis.");
      const body = {
        protocol: 1,
        name: "curious",
        host: "here",
        version: "1",
        labels: {},
        slots: 1,
      };
      const reply = await api.admin.workers.register({
        body: { ...body, devices: [], clockMs: 0 },
      });
      const own = new URL(fleet.serverEnv["COPPICE_REDIS_URL"] ?? "");
      const given = new URL(reply.doorbell.url);
      secrets.set("the workers' password for Redis", given.password);
      expect([given.host, given.username]).toEqual([own.host, "coppice-worker"]);
      expect(given.password).not.toBe(own.password);
      const limited = new Redis(given.href);
      try {
        await expect(limited.call("ACL", "LIST")).rejects.toThrow(/NOPERM/);
        await expect(limited.set("elsewhere", "x")).rejects.toThrow(/NOPERM/);
        expect(await limited.set("coppice:test", "x")).toBe("OK");
      } finally {
        limited.disconnect();
      }
    },
  );

  test("none is in what it says, stores, answers or is started with", async (context) => {
    context.skip(isMissing, "There is no Redis.");
    for (const [name, value] of secrets) expect([name, value.length > 15]).toEqual([name, true]);
    const holding = client.runs.submit({ body: { pipeline: "hold" } });
    const run = await ends("use");
    const bad = [await ends("refused"), await ends("broken")];

    // The step had its variable and otherwise nothing that is ours.
    const { output } = await client.items.get({ params: { run, step: "only", item: 0 } });
    expect(output).toMatchObject({ given: GIVEN.length });
    const { names } = output as { names: string[] };
    expect(names.filter((name) => /COPPICE|TOKEN|REDIS|DATABASE|NOT_ALLOWED/.test(name))).toEqual(
      [],
    );

    // A browser signs in; neither its code nor its session are kept as they are.
    const { code, path } = await client.session.createCode();
    const signedIn = await fetch(`${api.server}${path}`, { redirect: "manual" });
    const cookie = signedIn.headers.get("set-cookie")?.split(";")[0]?.split("=")[1] ?? "";
    expect(signedIn.status).toBe(303);
    secrets.set("the sign-in code", code).set("the session", cookie);
    await fetch(`${api.server}/v1/runs?token=${deployToken}`);

    const findings: string[] = [];
    const paths = [
      ...[run, ...bad].flatMap((id) => [
        `/v1/runs/${id}`,
        `/v1/runs/${id}/why`,
        `/v1/runs/${id}/events`,
        `/v1/runs/${id}/outputs`,
        `/v1/runs/${id}/artifacts`,
        `/v1/runs/${id}/steps/only`,
        `/v1/runs/${id}/steps/only/items/0`,
        `/v1/runs/${id}/steps/only/items/0/attempts/1/logs`,
      ]),
      "/v1/runs",
      "/v1/pipelines",
      "/v1/pipelines/use",
      "/v1/workers",
      "/v1/queues",
      "/v1/tokens",
      "/v1/projects",
      "/v1/pools",
      "/metrics",
      "/openapi.json",
      "/docs/",
      "/queues",
      "/queues/api/queues?activeQueue=cpu&status=completed&page=1",
      "/livez",
      "/v1/runs/run_nothing",
      "/v1/runs?limit=x",
      "/nowhere",
      "/v1/artifacts/x",
    ];
    const headers = { authorization: `Bearer ${api.adminToken}`, "x-coppice-project": "vault" };
    for (const one of paths) {
      for (const sent of [headers, {}]) {
        const response = await fetch(`${api.server}${one}`, { headers: sent });
        const heads = JSON.stringify([...response.headers]);
        findings.push(...found(`the answer of ${one}`, heads + (await response.text())));
      }
    }

    const { id: held } = await holding;
    await waitUntil(() => treeOf(worker.pid).length > 1, { what: "a child" });
    for (const program of [api.program, scheduler, worker]) {
      for (const pid of treeOf(program.pid)) {
        const words = readFileSync(`/proc/${pid}/cmdline`, "utf8");
        findings.push(...found("a command line", words));
        const isChild = program === worker && pid !== worker.pid;
        // A warm child keeps what its first attempt was given.
        if (isChild)
          findings.push(...found("a child", toldTo(pid), ["the variable given to a step"]));
      }
    }
    expect(found("the worker", toldTo(worker.pid)).toSorted()).toEqual([
      "the variable given to a step in the worker",
      "the variable given to nobody in the worker",
      "the worker's token in the worker",
    ]);
    await waitUntil(
      async () => (await client.runs.get({ params: { run: held } })).state === "succeeded",
      { what: "the held run" },
    );

    findings.push(...found("the database", await dump(fleet.databaseUrl)));
    const { COPPICE_REDIS_URL: redis, COPPICE_DOORBELL_DATABASE_URL: other } = fleet.serverEnv;
    const bells = redis === undefined ? await dump(other ?? "") : await dumpRedis(redis);
    expect(bells).toContain("bell");
    findings.push(...found("the doorbell", bells));

    const tokenFile = fleet.serverEnv["COPPICE_BOOTSTRAP_TOKEN_FILE"] ?? "";
    expect(statSync(tokenFile).mode & 0o777).toBe(0o600);
    const files = filesBelow(fleet.dir).filter((file) => file !== tokenFile);
    expect(files.length).toBeGreaterThan(1);
    for (const file of files) findings.push(...found(file, readFileSync(file, "latin1")));

    for (const program of [api.program, scheduler, worker]) {
      program.kill("SIGTERM");
      const { stdout, stderr } = await program.ended;
      expect(stdout).toContain('"msg":');
      findings.push(...found(`what ${program.pid} said`, stdout + stderr));
    }

    // Programs that fail at their start say why, and not by what.
    const away = (url: string): string => url.replace(/:\d+(?=\/|$)/, ":1");
    for (const wrong of [
      { COPPICE_DATABASE_URL: away(fleet.databaseUrl) },
      { COPPICE_DATABASE_URL: fleet.databaseUrl.replace(":", ";") },
      { COPPICE_DATABASE_URL: `${fleet.databaseUrl}-nowhere` },
      redis === undefined
        ? { COPPICE_DOORBELL_DATABASE_URL: away(other ?? "") }
        : { COPPICE_REDIS_URL: away(redis) },
    ]) {
      const env = { ...fleet.serverEnv, ...wrong };
      const {
        code: exit,
        stdout,
        stderr,
      } = await runProgram("coppice-api", [], { cwd: fleet.dir, env });
      expect([wrong, exit]).toEqual([wrong, 1]);
      findings.push(...found(`an end by ${stderr.slice(0, 40)}`, stdout + stderr));
    }
    expect([...new Set(findings)]).toEqual([]);
  }, 60_000);
});
