import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type CoppiceError, isCoppiceError } from "@coppice/core";
import { afterAll, describe, expect, test } from "vitest";
import { type ConfigProblem, describeConfig, loadConfig, processEnvironment } from "./config.ts";
import {
  artifactConfig,
  bootstrapConfig,
  databaseConfig,
  doorbellConfig,
  engineConfig,
  failpointConfig,
  httpConfig,
  logConfig,
  workerConfig,
} from "./config-fragments.ts";

const folder = mkdtempSync(join(tmpdir(), "coppice-config-"));
afterAll(() => rmSync(folder, { recursive: true }));

const file = (name: string, content: string): string => {
  const path = join(folder, name);
  writeFileSync(path, content, { mode: 0o600 });
  return path;
};

const failure = (load: () => unknown): { error: CoppiceError; problems: ConfigProblem[] } => {
  try {
    load();
  } catch (error) {
    if (!isCoppiceError(error)) throw error;
    expect(error.code).toBe("CPC_INVALID_CONFIG");
    return { error, problems: error.data["problems"] as ConfigProblem[] };
  }
  throw new Error("expected the configuration to be refused");
};

const every = [
  databaseConfig,
  doorbellConfig,
  httpConfig,
  artifactConfig,
  logConfig,
  engineConfig,
  workerConfig,
  bootstrapConfig,
  failpointConfig,
] as const;

describe("the configuration", () => {
  test("defaults make a laptop's server and worker run", () => {
    const config = loadConfig(
      {
        COPPICE_DATABASE_URL: "postgres://u:p@127.0.0.1/db",
        COPPICE_DOORBELL_DATABASE_URL: "postgres://u:p@127.0.0.1/bell",
        COPPICE_TOKEN: "cpc_x",
      },
      ...every,
    );
    expect(config).toEqual({
      databaseUrl: "postgres://u:p@127.0.0.1/db",
      redisUrl: undefined,
      doorbellDatabaseUrl: "postgres://u:p@127.0.0.1/bell",
      host: "127.0.0.1",
      port: 4600,
      allowedHosts: [],
      publicUrl: undefined,
      artifacts: ".coppice/artifacts",
      s3Endpoint: undefined,
      logLevel: "info",
      leaseMs: 15_000,
      heartbeatMs: 4000,
      reconcileMs: 2000,
      serverUrl: "http://127.0.0.1:4600",
      token: "cpc_x",
      slots: undefined,
      labels: {},
      workerDir: ".coppice/worker",
      allowEnv: [],
      metricsPort: undefined,
      bootstrapToken: undefined,
      failpoints: [],
    });
  });

  test("lists, labels and pairs are parsed", () => {
    const config = loadConfig(
      {
        COPPICE_TOKEN: "cpc_x",
        COPPICE_WORKER_LABELS: "zone=a, disk=ssd",
        COPPICE_ALLOW_ENV: "demo:HF_HOME,demo:SEED",
        COPPICE_WORKER_SLOTS: "4",
        COPPICE_ALLOWED_HOSTS: "a.example, [::1]",
      },
      workerConfig,
      httpConfig,
    );
    expect(config.labels).toEqual({ zone: "a", disk: "ssd" });
    expect(config.allowEnv).toEqual([
      { project: "demo", name: "HF_HOME" },
      { project: "demo", name: "SEED" },
    ]);
    expect(config.slots).toBe(4);
    expect(config.allowedHosts).toEqual(["a.example", "[::1]"]);
  });

  test("the result is frozen to its last leaf", () => {
    const env = { COPPICE_TOKEN: "cpc_x", COPPICE_ALLOW_ENV: "demo:SEED" };
    const config = loadConfig(env, workerConfig);
    expect(Object.isFrozen(config)).toBe(true);
    expect(Object.isFrozen(config.labels)).toBe(true);
    expect(Object.isFrozen(config.allowEnv[0])).toBe(true);
  });

  test("every problem is reported at once: the variable, what was expected, what came", () => {
    const { error, problems } = failure(() =>
      loadConfig(
        { COPPICE_PORT: "http", COPPICE_LOG_LEVEL: "loud", COPPICE_LEASE_MS: "1e9" },
        databaseConfig,
        httpConfig,
        logConfig,
        engineConfig,
      ),
    );
    expect(problems.map(({ variable }) => variable)).toEqual([
      "COPPICE_DATABASE_URL",
      "COPPICE_PORT",
      "COPPICE_LOG_LEVEL",
      "COPPICE_LEASE_MS",
    ]);
    expect(problems[1]).toEqual({
      variable: "COPPICE_PORT",
      expected: "a whole number from 0 to 65535",
      received: '"http"',
    });
    expect(error.message).toContain("COPPICE_LOG_LEVEL: expected one of debug, info");
  });

  test("a secret's value never stands in a report", () => {
    const { error } = failure(() =>
      loadConfig(
        {
          COPPICE_DATABASE_URL: "mysql://u:c4n4ry@h/db",
          COPPICE_REDIS_URL: "c4n4ry",
          COPPICE_BOOTSTRAP_TOKEN_FILE: file("big", "c4n4ry".repeat(20_000)),
        },
        databaseConfig,
        doorbellConfig,
        bootstrapConfig,
      ),
    );
    const report = JSON.stringify([error.message, error.data, error.stack, error.hint]);
    expect(report).toContain("COPPICE_BOOTSTRAP_TOKEN_FILE");
    expect(report).not.toContain("c4n4ry");
  });

  test("a secret may come from a file, but not from both places", () => {
    const path = file("url", "postgres://u:p@h/db\n");
    const config = loadConfig({ COPPICE_DATABASE_URL_FILE: path }, databaseConfig);
    expect(config.databaseUrl).toBe("postgres://u:p@h/db");
    const env = { COPPICE_DATABASE_URL: "postgres://h/db", COPPICE_DATABASE_URL_FILE: path };
    const { problems } = failure(() => loadConfig(env, databaseConfig));
    expect(problems).toHaveLength(1);
    expect(problems[0]).toMatchObject({ received: "both" });
  });

  test("a file that is missing or empty is a problem of its variable", () => {
    const missing = { COPPICE_TOKEN_FILE: join(folder, "missing") };
    expect(failure(() => loadConfig(missing, workerConfig)).problems).toMatchObject([
      { variable: "COPPICE_TOKEN_FILE", received: expect.stringContaining("ENOENT") },
    ]);
    const empty = { COPPICE_TOKEN_FILE: file("empty", " \n") };
    expect(failure(() => loadConfig(empty, workerConfig)).problems).toHaveLength(1);
  });

  test("the first token comes only from a file", () => {
    const path = file("token", "cpc_first\n");
    const env = { COPPICE_BOOTSTRAP_TOKEN: "cpc_ignored", COPPICE_BOOTSTRAP_TOKEN_FILE: path };
    expect(loadConfig(env, bootstrapConfig).bootstrapToken).toBe("cpc_first");
  });

  test("an empty variable counts as not set", () => {
    const config = loadConfig({ COPPICE_PORT: "", COPPICE_PUBLIC_URL: " " }, httpConfig);
    expect(config).toMatchObject({ port: 4600, publicUrl: undefined });
  });

  test("a lease must outlast three heartbeats", () => {
    const env = { COPPICE_LEASE_MS: "12000", COPPICE_HEARTBEAT_MS: "4000" };
    expect(failure(() => loadConfig(env, engineConfig)).problems).toEqual([
      {
        variable: "COPPICE_LEASE_MS",
        expected: "more than three times COPPICE_HEARTBEAT_MS (4000)",
        received: "12000",
      },
    ]);
    expect(loadConfig({ ...env, COPPICE_LEASE_MS: "12001" }, engineConfig).leaseMs).toBe(12_001);
  });

  test("a doorbell must be named", () => {
    expect(failure(() => loadConfig({}, doorbellConfig)).problems).toHaveLength(1);
    const config = loadConfig({ COPPICE_REDIS_URL: "rediss://:p@h:6380" }, doorbellConfig);
    expect(config.redisUrl).toBe("rediss://:p@h:6380");
  });

  test.each([
    ["COPPICE_ALLOW_ENV", "demo:COPPICE_TOKEN"],
    ["COPPICE_ALLOW_ENV", "demo:NODE_OPTIONS"],
    ["COPPICE_ALLOW_ENV", "demo:LD_PRELOAD"],
    ["COPPICE_ALLOW_ENV", "demo:*"],
    ["COPPICE_ALLOW_ENV", "HF_HOME"],
    ["COPPICE_WORKER_LABELS", "zone"],
    ["COPPICE_WORKER_LABELS", "zone=a,zone=b"],
    ["COPPICE_WORKER_SLOTS", "0"],
    ["COPPICE_WORKER_SLOTS", "-1"],
    ["COPPICE_WORKER_SLOTS", "1.5"],
    ["COPPICE_SERVER_URL", "ftp://h"],
  ])("%s refuses %s", (name, value) => {
    const env = { COPPICE_TOKEN: "cpc_x", [name]: value };
    expect(failure(() => loadConfig(env, workerConfig)).problems).toMatchObject([
      { variable: name, received: JSON.stringify(value) },
    ]);
  });

  test("every variable has a name of ours, a description, and a default that it accepts", () => {
    const rows = describeConfig(...every);
    expect(new Set(rows.map(({ name }) => name)).size).toBe(rows.length);
    for (const row of rows) {
      expect(row.name).toMatch(/^COPPICE_[A-Z0-9_]+( \(or COPPICE_[A-Z0-9_]+_FILE\))?$/);
      expect(row.description).toMatch(/\.$/);
    }
    expect(rows.filter(({ isRequired }) => isRequired).map(({ name }) => name)).toEqual([
      "COPPICE_DATABASE_URL (or COPPICE_DATABASE_URL_FILE)",
      "COPPICE_TOKEN (or COPPICE_TOKEN_FILE)",
    ]);
    expect(rows.find(({ name }) => name === "COPPICE_LEASE_MS")?.default).toBe("15000");
  });

  test("the process's environment is a frozen copy", () => {
    const env = processEnvironment();
    expect(env["PATH"]).toBe(process.env["PATH"]);
    expect(Object.isFrozen(env)).toBe(true);
  });
});
