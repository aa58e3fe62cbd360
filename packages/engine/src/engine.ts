/**
 * The engine: everything that changes runs goes through here.
 *
 * It puts together the batcher, the commit, the relay and the estimate of capacity, and speaks the workers'
 * protocol. What must stay true: a resolved promise means that the database has committed.
 */
import type {
  RegisterRequest,
  StreamAnswer,
  StreamItem,
  WorkAnswer,
  WorkItem,
} from "@coppice/contract";
import {
  type AttemptRef,
  CoppiceError,
  type ErrorRecord,
  isCoppiceError,
  type JsonValue,
  type LeaseToken,
  type Logger,
  type Metrics,
  type PipelineVersionId,
  type ProjectId,
  type RunId,
  type TokenId,
  toErrorRecord,
  type WorkerId,
} from "@coppice/core";
import { workerServesClass } from "@coppice/pipeline";
import type { Doorbell } from "@coppice/queue";
import { checkLeases, type Database, insertWorker, readRuns } from "@coppice/store";

import { openBatcher } from "./batcher.ts";
import { openCapacity } from "./capacity.ts";
import { commitBatch, type CommitContext, type EngineControls } from "./commit.ts";
import type { EngineEvent, EventResult } from "./events.ts";
import { openFacts } from "./facts.ts";
import { newId, secureRandom } from "./identity.ts";
import { streamJoin } from "./join.ts";
import { openNotifier } from "./notifier.ts";
import { openOutputCache } from "./outputs.ts";
import { openRelay, type Relay } from "./relay.ts";
import { startRefreshing } from "./refresh.ts";
import { streamItems } from "./stream.ts";
import { toAnswers, toEvent, withStorableOutcome } from "./work-protocol.ts";

export interface EngineOptions {
  readonly db: Database;
  readonly doorbell: Doorbell;
  readonly logger: Logger;
  readonly metrics: Metrics;
  /** How long an attempt lives without a heartbeat. @defaultValue 15_000 */
  readonly leaseMs?: number;
  /** Transactions at a time. @defaultValue 2 */
  readonly lanes?: number;
  /** Events per transaction at most. @defaultValue 400 */
  readonly batchMax?: number;
  /** Called at every labelled crash point; tests end the process there. */
  readonly failpoint?: (label: string) => void;
  /** For the negative controls of the invariant checker only. */
  readonly controls?: EngineControls;
}

export const LEASE_MS_DEFAULT = 15_000;
const LANES_DEFAULT = 2;
const BATCH_MAX_DEFAULT = 400;

export interface SubmitInput {
  readonly projectId: ProjectId;
  readonly pipelineVersionId: PipelineVersionId;
  readonly params: JsonValue;
  readonly priority?: number;
  readonly reason?: string;
  readonly parentRunId?: RunId;
  readonly traceparent?: string;
  readonly idempotency?: {
    readonly key: string;
    readonly requestSha256: Uint8Array;
    /** What the caller answers, kept for the same request sent again. */
    readonly respond: (runId: RunId) => { readonly status: number; readonly response: JsonValue };
  };
}

export interface Submitted {
  readonly runId: RunId;
  readonly isReplay: boolean;
  /** What was answered when the key was used first. */
  readonly response: JsonValue | undefined;
}

export interface Engine {
  submit(input: SubmitInput): Promise<Submitted>;
  work(workerId: WorkerId, items: readonly WorkItem[]): Promise<WorkAnswer[]>;
  stream(workerId: WorkerId, items: readonly StreamItem[]): Promise<StreamAnswer[]>;
  registerWorker(
    tokenId: TokenId,
    request: RegisterRequest,
  ): Promise<{ workerId: WorkerId; classes: string[]; clockSkewMs: number }>;
  cancelRun(projectId: ProjectId, runId: RunId, reason: string): Promise<void>;
  cancelStep(
    projectId: ProjectId,
    target: { readonly runId: RunId; readonly step: number; readonly item?: number },
    reason: string,
  ): Promise<void>;
  /** Whose attempt this is and which worker began it, if this token still holds it. */
  authorizeAttempt(ref: AttemptRef, lease: LeaseToken): Promise<GrantedAttempt | undefined>;
  joinOutputs(runId: RunId, step: number, path: readonly string[]): AsyncIterable<JsonValue>;
  /** Hints that runs have changed, from this process and others; "*" after a gap. */
  onRunChanged(listener: (runId: RunId | "*") => void): () => void;
  /** For the maintenance of this room and for tests. */
  readonly inside: EngineInside;
  close(): Promise<void>;
}

export interface GrantedAttempt {
  readonly projectId: ProjectId;
  readonly bundleDigest: string;
  readonly workerId: WorkerId | null;
}

export interface EngineInside {
  readonly commit: (event: EngineEvent) => Promise<EventResult>;
  readonly relay: Relay;
  readonly context: CommitContext;
  readonly db: Database;
  readonly doorbell: Doorbell;
  readonly leaseMs: number;
  /** Reads the load again and admits what waits. */
  readonly refresh: () => Promise<void>;
}

export const openEngine = async (options: EngineOptions): Promise<Engine> => {
  const { db, doorbell, logger, metrics } = options;
  const leaseMs = options.leaseMs ?? LEASE_MS_DEFAULT;
  const failpoint = options.failpoint ?? (() => undefined);
  const facts = openFacts();
  // A worker that was not seen for two leases takes no bells.
  const capacity = openCapacity(facts, 2 * leaseMs);
  const outputs = openOutputCache(db);
  const relay = openRelay({ db, doorbell, logger, metrics, failpoint });
  const notifier = await openNotifier(db, logger);
  const context: CommitContext = {
    facts,
    capacity,
    outputs,
    metrics,
    leaseMs,
    random: secureRandom,
    controls: options.controls ?? {},
    failpoint,
  };
  const commitOnce = makeCommit(options, context, relay, notifier.notify);
  const batcher = openBatcher({
    lanes: options.lanes ?? LANES_DEFAULT,
    batchMax: options.batchMax ?? BATCH_MAX_DEFAULT,
    commit: commitOnce,
  });

  const refreshing = await startRefreshing({ db, capacity, logger, commit: batcher.submit });
  const { refresh } = refreshing;
  const inside: EngineInside = {
    commit: batcher.submit,
    relay,
    context,
    db,
    doorbell,
    leaseMs,
    refresh,
  };
  const assignmentContext = { db, facts, outputs };
  return {
    submit: (input) => submit(inside, input),
    work: async (workerId, items) => {
      const results = await Promise.allSettled(
        items.map(async (item) => {
          try {
            return await batcher.submit(toEvent(workerId, item));
          } catch (error) {
            const mended = withStorableOutcome(item, error);
            if (mended === undefined) throw error;
            return batcher.submit(toEvent(workerId, mended));
          }
        }),
      );
      return toAnswers(assignmentContext, results);
    },
    stream: (workerId, items) => streamItems({ db, facts, leaseMs }, workerId, items),
    registerWorker: (tokenId, request) => registerWorker(inside, tokenId, request),
    cancelRun: (projectId, runId, reason) => cancelRun(inside, projectId, runId, reason),
    cancelStep: (projectId, target, reason) => cancelStep(inside, projectId, target, reason),
    authorizeAttempt: (ref, lease) => authorizeAttempt(inside, ref, lease),
    joinOutputs: (runId, step, path) => streamJoin(db, runId, step, path),
    onRunChanged: notifier.onRunChanged,
    inside,
    close: async () => {
      refreshing.stop();
      await batcher.idle();
      await relay.close();
      await notifier.close();
    },
  };
};

const registerWorker: (
  inside: EngineInside,
  ...args: Parameters<Engine["registerWorker"]>
) => ReturnType<Engine["registerWorker"]> = async (
  { db, context: { facts }, refresh },
  tokenId,
  request,
) => {
  const workerId = newId("wrk");
  const gpus = request.devices.length;
  const clockSkewMs = await insertWorker(db, { ...request, id: workerId, tokenId, gpus });
  await refresh();
  const classes = facts
    .classes()
    .filter((entry) => workerServesClass({ labels: request.labels, gpus }, entry));
  return { workerId, classes: classes.map((entry) => entry.key), clockSkewMs };
};

const requireRun = async (
  { db, context }: EngineInside,
  projectId: ProjectId,
  runId: RunId,
): Promise<void> => {
  const [run] = await readRuns(db, [runId]);
  const version = run === undefined ? undefined : await context.facts.version(db, run.versionId);
  if (version?.projectId !== projectId) throw new CoppiceError("CPC_RUN_NOT_FOUND");
};

const cancelError = (reason: string): ErrorRecord =>
  toErrorRecord(new CoppiceError("CPC_CANCELLED", { detail: reason }));

const cancelRun = async (
  inside: EngineInside,
  projectId: ProjectId,
  runId: RunId,
  reason: string,
): Promise<void> => {
  await requireRun(inside, projectId, runId);
  orThrow(await inside.commit({ type: "cancelRun", runId, error: cancelError(reason) }));
};

const cancelStep = async (
  inside: EngineInside,
  projectId: ProjectId,
  target: { readonly runId: RunId; readonly step: number; readonly item?: number },
  reason: string,
): Promise<void> => {
  await requireRun(inside, projectId, target.runId);
  orThrow(await inside.commit({ type: "cancelStep", ...target, error: cancelError(reason) }));
};

const authorizeAttempt = async (
  { db, context }: EngineInside,
  ref: AttemptRef,
  lease: LeaseToken,
): Promise<GrantedAttempt | undefined> => {
  const [row] = await checkLeases(db, [{ ...ref, lease }]);
  const [run] = row === undefined ? [] : await readRuns(db, [ref.runId]);
  if (row === undefined || run === undefined) return undefined;
  const { projectId, bundleDigest } = await context.facts.version(db, run.versionId);
  return { projectId, bundleDigest, workerId: row.workerId as WorkerId | null };
};

const orThrow = (result: EventResult): void => {
  if (result.type === "refused") throw result.error;
};

const makeCommit =
  (
    { db, logger, metrics, failpoint = () => undefined }: EngineOptions,
    context: CommitContext,
    relay: Relay,
    notify: (runIds: readonly RunId[]) => void,
  ) =>
  async (events: readonly EngineEvent[]): Promise<readonly EventResult[]> => {
    const rungIds = relay.takeRung();
    const startedAtMs = performance.now();
    try {
      const committed = await db.transaction((tx) => commitBatch(context, tx, events, rungIds));
      failpoint("commit.done");
      committed.afterCommit();
      metrics.observe("coppice_commit_batch_size", events.length);
      metrics.observe("coppice_commit_seconds", (performance.now() - startedAtMs) / 1000);
      if (committed.bells.length > 0) relay.ring(committed.bells, committed.outboxId);
      notify(committed.runIds);
      return committed.results;
    } catch (error) {
      relay.giveBack(rungIds);
      if (!isCoppiceError(error))
        logger.error({ err: error, events: events.length }, "commit failed");
      throw error;
    }
  };

const submit = async (
  { db, context, commit }: EngineInside,
  input: SubmitInput,
): Promise<Submitted> => {
  const version = await context.facts.version(db, input.pipelineVersionId);
  if (version.projectId !== input.projectId) throw new CoppiceError("CPC_PIPELINE_NOT_FOUND");
  const id = newId("run");
  const traceparent = input.traceparent ?? null;
  const idempotency = input.idempotency;
  context.facts.rememberRun(id, { params: input.params, traceparent });
  const result = await commit({
    type: "submit",
    version,
    params: input.params,
    run: {
      id,
      projectId: input.projectId,
      versionId: version.id,
      parentRunId: input.parentRunId ?? null,
      reason: input.reason ?? null,
      priority: input.priority ?? 0,
      params: JSON.stringify(input.params),
      traceparent,
      timeoutMs: version.graph.pipeline.timeoutMs ?? null,
    },
    ...(idempotency === undefined
      ? {}
      : {
          idempotency: {
            key: idempotency.key,
            requestSha256: idempotency.requestSha256,
            ...idempotency.respond(id),
          },
        }),
  });
  orThrow(result);
  const isReplay = result.type === "submitted" && result.isReplay;
  const response =
    result.type === "submitted" ? (result.response as JsonValue | undefined) : undefined;
  return { runId: id, isReplay, response };
};
