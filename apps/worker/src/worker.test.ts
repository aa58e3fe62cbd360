/** The worker as a process: its flags, its signals, its health. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { type AddressInfo, createServer as createTcpServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { createMetrics } from "@coppice/telemetry";
import { afterEach, beforeEach, describe, expect, test } from "vitest";

import { startHealthServer } from "./health-server.ts";
import { loadWorkerConfig } from "./worker-config.ts";

const TOKEN = "cpc_worker_0123456789abcdefghijklmnopqrstuvwxyzABCD";

let dir = "";
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), "coppice-worker-"));
  await writeFile(join(dir, "token"), TOKEN);
});
afterEach(async () => await rm(dir, { recursive: true, force: true }));

describe("configuration", () => {
  test("flags win over variables; lists add up", () => {
    const args = ["--slots", "3", "--label", "zone=a", "--label", "disk=ssd"];
    const more = ["--allow-env", "demo:TOKEN", "--name", "w1", "--token-file", join(dir, "token")];
    const env = { COPPICE_WORKER_SLOTS: "9", COPPICE_TOKEN: "from the environment" };
    expect(loadWorkerConfig([...args, ...more], env)).toMatchObject({
      slots: 3,
      labels: { zone: "a", disk: "ssd" },
      allowEnv: [{ project: "demo", name: "TOKEN" }],
      name: "w1",
      token: TOKEN,
      serverUrl: "http://127.0.0.1:4600",
    });
  });

  test("an unknown flag is named", () => {
    expect(() => loadWorkerConfig(["--slot", "3"], {})).toThrow(/--slot/);
  });

  test("our own variables can't be allowed to a step", () => {
    const args = ["--allow-env", "demo:COPPICE_TOKEN", "--token-file", join(dir, "token")];
    expect(() => loadWorkerConfig(args, {})).toThrow(/COPPICE_ALLOW_ENV/);
  });
});

const startWorker = (server: string, metricsPort: number): ChildProcess => {
  const entry = new URL("./main.ts", import.meta.url).pathname;
  const flags = ["--server", server, "--token-file", join(dir, "token"), "--slots", "2"];
  const own = ["--dir", join(dir, "worker"), "--metrics-port", String(metricsPort)];
  return spawn(
    process.execPath,
    ["--conditions=@coppice/source", entry, ...flags, ...own, "--log-level", "silent"],
    { stdio: ["ignore", "inherit", "inherit"], env: { PATH: process.env["PATH"] } },
  );
};

const freePort = async (): Promise<number> => {
  const server = createTcpServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
};

const statusOf = async (port: number, path: string): Promise<number> =>
  await fetch(`http://127.0.0.1:${port}${path}`).then(
    ({ status }) => status,
    () => 0,
  );

describe("the process", () => {
  test("waits for a server, is alive but not ready, and ends with 0 on SIGTERM", async () => {
    const port = await freePort();
    const worker = startWorker("http://127.0.0.1:1", port);
    const ended = once(worker, "exit");
    await expect.poll(() => statusOf(port, "/livez"), { timeout: 15_000 }).toBe(200);
    expect(await statusOf(port, "/readyz")).toBe(503);
    worker.kill("SIGTERM");
    expect(await ended).toEqual([0, null]);
  }, 30_000);

  test("registers, is ready, and drains on SIGTERM", async () => {
    const bodies: unknown[] = [];
    const server = createServer((request, response) => {
      const chunks: Buffer[] = [];
      request.on("data", (chunk: Buffer) => chunks.push(chunk));
      request.on("end", () => {
        const body = JSON.parse(Buffer.concat(chunks).toString()) as { items?: unknown[] };
        bodies.push({ url: request.url, token: request.headers.authorization, body });
        const answers = body.items?.map(() => ({ type: "ok" }));
        const registered = {
          workerId: "00000000-0000-4000-8000-000000000001",
          leaseMs: 15_000,
          heartbeatMs: 50,
          doorbell: { kind: "redis", url: "redis://127.0.0.1:1", prefix: "test" },
          classes: [],
          clockSkewMs: 0,
        };
        response.writeHead(answers === undefined ? 201 : 200);
        response.end(JSON.stringify(answers === undefined ? registered : { answers }));
      });
    }).listen(0, "127.0.0.1");
    await once(server, "listening");
    const port = await freePort();
    const { port: apiPort } = server.address() as AddressInfo;
    const worker = startWorker(`http://127.0.0.1:${apiPort}`, port);
    const ended = once(worker, "exit");
    await expect.poll(() => statusOf(port, "/readyz"), { timeout: 15_000 }).toBe(200);
    worker.kill("SIGTERM");
    expect(await ended).toEqual([0, null]);
    expect(bodies[0]).toMatchObject({
      url: "/v1/workers",
      token: `Bearer ${TOKEN}`,
      body: { slots: 2, protocol: 1 },
    });
    expect(JSON.stringify(bodies)).toContain('"isDraining":true');
    server.closeAllConnections();
    server.close();
  }, 30_000);

  test("metrics are told to loopback names only", async () => {
    const metrics = createMetrics({ withProcess: false });
    const health = await startHealthServer({ port: 0, metrics, stats: () => undefined });
    expect(await statusOf(health.port, "/metrics")).toBe(200);
    const { request } = await import("node:http");
    const foreign = request({
      port: health.port,
      path: "/metrics",
      headers: { host: "evil.test" },
    });
    foreign.end();
    const [response] = (await once(foreign, "response")) as [{ statusCode: number }];
    expect(response.statusCode).toBe(421);
    await health.close();
  });
});
