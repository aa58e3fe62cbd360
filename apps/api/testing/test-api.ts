/**
 * The API over real services: a database, a doorbell, an engine, artifacts in a folder, and a token
 * of every scope. Listens on a free port where a test wants sockets.
 */
import { createHash } from "node:crypto";
import { setTimeout as pause } from "node:timers/promises";
import { openArtifactStore } from "@coppice/artifacts";
import { type Client, createClient, type Scope, type StreamAnswer } from "@coppice/contract";
import type { WorkAnswer } from "@coppice/contract";
import { type Logger, type ProjectId, silentLogger, type WorkerId } from "@coppice/core";
import type { Engine } from "@coppice/engine";
import { openBoard } from "@coppice/queue";
import { ensureProject, insertToken } from "@coppice/store";
import { createMetrics } from "@coppice/telemetry";
import { type EngineWorld, openEngineWorld, tempDir } from "@coppice/testing";
import type { FastifyInstance } from "fastify";
import { buildApp } from "../src/app.ts";
import type { Deps } from "../src/deps.ts";
import { mintToken, newId } from "../src/token.ts";

export interface TestApi extends AsyncDisposable {
  readonly world: EngineWorld;
  readonly app: FastifyInstance;
  readonly deps: Deps;
  /** Of the project "test" and of the installation. */
  readonly tokens: Readonly<Record<Scope, string>>;
  /** A token of another project, which is made. */
  tokenOf(project: string, scope: Scope): Promise<string>;
  /** Where it listens; the first call opens the port. */
  listen(): Promise<string>;
  client(token?: string, project?: string): Promise<Client>;
}

const SCOPES = ["read", "submit", "deploy", "worker", "admin"] as const;

export interface TestApiOptions {
  readonly logger?: Logger;
  readonly withBoard?: boolean;
}

export const openTestApi = async (options: TestApiOptions = {}): Promise<TestApi> => {
  const world = await openEngineWorld();
  const folder = await tempDir("artifacts");
  const logger = options.logger ?? silentLogger;
  const artifacts = await openArtifactStore(folder.path);
  const deps: Deps = {
    db: world.db,
    engine: world.engine,
    artifacts,
    doorbellAddress: world.address,
    openBoard:
      options.withBoard === true
        ? (isReadOnly) =>
            openBoard({
              address: world.address,
              basePath: "/queues",
              readOnly: (request) => isReadOnly(request.caller?.scope ?? "read"),
            })
        : undefined,
    logger,
    metrics: createMetrics({ withProcess: false }),
    leaseMs: 15_000,
    heartbeatMs: 4000,
    allowedHosts: ["coppice.example"],
  };
  const app = await buildApp(deps);
  await app.ready();
  const make = async (scope: Scope, projectId: ProjectId | null): Promise<string> => {
    const { id, text, secretSha256 } = mintToken();
    const name = `test ${scope}`;
    await insertToken(world.db, { id, projectId, name, scope, secretSha256, expiresInMs: null });
    return text;
  };
  const tokens = {} as Record<Scope, string>;
  for (const scope of SCOPES) {
    tokens[scope] = await make(
      scope,
      scope === "worker" || scope === "admin" ? null : world.projectId,
    );
  }
  let url: string | undefined;
  const listen = async (): Promise<string> => {
    url ??= await app.listen({ host: "127.0.0.1", port: 0 });
    return url;
  };
  return {
    world,
    app,
    deps,
    tokens,
    tokenOf: async (project, scope) => {
      const { id } = await ensureProject(world.db, newId<ProjectId>(), project);
      return await make(scope, id);
    },
    listen,
    client: async (token = tokens.deploy, project) =>
      createClient({ server: await listen(), token, project }),
    [Symbol.asyncDispose]: async () => {
      await app.close();
      await world[Symbol.asyncDispose]();
      await artifacts.close();
      await folder.remove();
    },
  };
};

/** The engine as workers see it: over HTTP. */
export const overHttp = (client: Client): Pick<Engine, "work" | "stream" | "registerWorker"> => ({
  registerWorker: async (_tokenId, body) => {
    const reply = await client.workers.register({ body });
    return { ...reply, workerId: reply.workerId as WorkerId };
  },
  work: async (worker, items) => {
    const body = { lane: "work" as const, items: [...items] };
    const reply = await client.workers.exchange({ params: { worker }, body });
    return reply.answers as WorkAnswer[];
  },
  stream: async (worker, items) => {
    const body = { lane: "stream" as const, items: [...items] };
    const reply = await client.workers.exchange({ params: { worker }, body });
    return reply.answers as StreamAnswer[];
  },
});

export const sha256 = (bytes: string | Uint8Array): string =>
  createHash("sha256").update(bytes).digest("hex");

/** Deploys through the API: a bundle of these bytes and the pipelines. */
export const deployOver = async (
  client: Client,
  pipelines: Parameters<Client["pipelines"]["deploy"]>[0]["body"]["pipelines"],
  bytes = "bundle",
) => {
  const digest = sha256(bytes);
  await client.bundles.put({ params: { digest }, body: new Blob([bytes]) });
  return await client.pipelines.deploy({ body: { bundleDigest: digest, pipelines } });
};

export const untilFinal = async (client: Client, run: string) => {
  const deadline = performance.now() + 20_000;
  for (;;) {
    const detail = await client.runs.get({ params: { run } });
    if (detail.state !== "running") return detail;
    if (performance.now() > deadline) throw new Error(`run ${run} is still running`);
    await pause(20);
  }
};
