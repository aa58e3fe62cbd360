/**
 * The whole engine in this one process: submit, commit, relay, and a worker that runs functions
 * instead of children and speaks the workers' protocol directly.
 */
import { createHash, randomBytes, randomUUID } from "node:crypto";
import {
  type Metrics,
  type PipelineVersionId,
  type ProjectId,
  silentMetrics,
  type TokenId,
  uuidV7,
  type WorkerId,
} from "@coppice/core";
import { type Engine, openEngine, startMaintenance, startStamping } from "@coppice/engine";
import { compilePipeline, type PipelineIrInput } from "@coppice/pipeline";
import { type DoorbellAddress, openDoorbell } from "@coppice/queue";
import {
  type Database,
  deployVersions,
  ensureProject,
  insertBundle,
  insertToken,
  openDatabase,
} from "@coppice/store";
import { type Execute, startInlineWorker } from "@coppice/testing";
import { benchLogger, type DoorbellKind, type Servers, startServers } from "./servers.ts";

const BUNDLE = "0".repeat(64);

export interface Batches {
  commits: number;
  events: number;
}

export interface EngineRig {
  readonly servers: Servers;
  readonly db: Database;
  readonly engine: Engine;
  readonly address: DoorbellAddress;
  readonly projectId: ProjectId;
  /** Commits and the events in them, since it was last set to zero. */
  readonly batches: Batches;
  deploy(pipeline: PipelineIrInput): Promise<PipelineVersionId>;
  /** Runs every attempt by this function; `finished()` counts accepted finishes. */
  startWorker(slots: number, execute: Execute): Promise<RigWorker>;
  close(): Promise<void>;
}

export interface RigWorker {
  readonly workerId: WorkerId;
  stop(): Promise<void>;
  finished(): number;
  /** Resolves with the finish that makes it so many; rejects when nothing finishes for a while. */
  reach(total: number): Promise<void>;
}

export const freshId = <Id extends string>(): Id => uuidV7(Date.now(), randomBytes(10)) as Id;

export const openEngineRig = async (kind: DoorbellKind): Promise<EngineRig> => {
  const servers = await startServers(kind);
  const logger = benchLogger;
  const db = openDatabase({ url: servers.databaseUrl, applicationName: "bench", logger });
  const doorbell = await openDoorbell(servers.address, { logger });
  const batches: Batches = { commits: 0, events: 0 };
  const metrics: Metrics = {
    ...silentMetrics,
    observe: (name, value) => {
      if (name !== "coppice_commit_batch_size") return;
      batches.commits += 1;
      batches.events += value;
    },
  };
  const engine = await openEngine({ db, doorbell, logger, metrics });
  const background = [
    startMaintenance(engine, { logger }),
    startStamping(engine, "api", randomUUID(), logger),
  ];
  const { id: projectId } = await ensureProject(db, freshId<ProjectId>(), "bench");
  const tokenId = freshId<TokenId>();
  await insertToken(db, {
    id: tokenId,
    projectId: null,
    name: "bench workers",
    scope: "worker",
    secretSha256: randomBytes(32),
    expiresInMs: null,
  });
  await insertBundle(db, projectId, BUNDLE, 1);
  const undo: (() => Promise<void>)[] = [];
  return {
    servers,
    db,
    engine,
    address: servers.address,
    projectId,
    batches,
    deploy: async (pipeline) => {
      const { ir } = compilePipeline(pipeline);
      const irSha256 = createHash("sha256").update(JSON.stringify(ir)).digest("hex");
      const id = freshId<PipelineVersionId>();
      const versions = [{ id, name: ir.name, ir, irSha256 }];
      await db.transaction((tx) => deployVersions(tx, projectId, BUNDLE, versions));
      // Reading it makes its classes, so that the worker hears of them when it registers.
      await engine.inside.context.facts.version(db, id);
      return id;
    },
    startWorker: async (slots, execute) => {
      const progress = watchProgress();
      const worker = await startInlineWorker({
        engine,
        doorbell: servers.address,
        tokenId,
        slots,
        execute,
        onAnswer: (item, answer) => {
          if (item.type === "finish" && answer.type === "accepted") progress.add();
        },
      });
      undo.push(() => worker.stop());
      return { workerId: worker.workerId, stop: () => worker.stop(), ...progress };
    },
    close: async () => {
      for (const stop of undo.toReversed()) await stop();
      for (const task of background) await task.stop();
      await engine.close();
      await doorbell.close();
      await db.close();
      await servers.close();
    },
  };
};

const STALLED_MS = 30_000;

/** Counts finishes and wakes whoever waits for a number of them, without a timer in between. */
const watchProgress = () => {
  let finished = 0;
  let waiting: { total: number; resolve: () => void } | undefined;
  return {
    add: () => {
      finished += 1;
      if (waiting !== undefined && finished >= waiting.total) waiting.resolve();
    },
    finished: () => finished,
    reach: async (total: number): Promise<void> => {
      if (finished >= total) return;
      let last = finished;
      let watchdog: NodeJS.Timeout | undefined;
      await new Promise<void>((resolve, reject) => {
        waiting = { total, resolve };
        watchdog = setInterval(() => {
          if (finished === last) {
            reject(
              new Error(`nothing finished for ${STALLED_MS / 1000} s: ${finished} of ${total}`),
            );
          }
          last = finished;
        }, STALLED_MS);
      }).finally(() => clearInterval(watchdog));
      waiting = undefined;
    },
  };
};
