/**
 * An engine over a real database and a real doorbell, with a project and a worker's token in it.
 *
 * What must stay true: everything opened here is closed when the fixture is disposed, in the order
 * in which nothing is missed; several engines may share one database and one doorbell.
 */
import { createHash, randomBytes } from "node:crypto";
import {
  type JsonValue,
  type Logger,
  type Metrics,
  type PipelineVersionId,
  type ProjectId,
  type RunId,
  type RunState,
  silentLogger,
  silentMetrics,
  type StepState,
  type TokenId,
  uuidV7,
} from "@coppice/core";
import {
  type Engine,
  type EngineControls,
  type EngineOptions,
  type Maintenance,
  openEngine,
  startMaintenance,
  startStamping,
  type SubmitInput,
} from "@coppice/engine";
import { compilePipeline, type PipelineIrInput } from "@coppice/pipeline";
import { type Doorbell, type DoorbellAddress, migrateDoorbell, openDoorbell } from "@coppice/queue";
import {
  type Database,
  deployVersions,
  ensureProject,
  insertBundle,
  insertToken,
  openDatabase,
} from "@coppice/store";
import { type Execute, type InlineWorker, startInlineWorker } from "./inline-worker.ts";
import { testDoorbellDatabase, testPostgres, testRedis } from "./test-services.ts";
import { waitUntil } from "./wait-until.ts";

export type DoorbellKind = "redis" | "postgres";

export interface TestEngineOptions {
  readonly databaseUrl: string;
  readonly doorbell: DoorbellAddress;
  readonly logger?: Logger;
  readonly metrics?: Metrics;
  readonly leaseMs?: number;
  readonly lanes?: number;
  readonly controls?: EngineControls;
  readonly failpoint?: (label: string) => void;
  /** Runs timers, sweep and reconciler, and answers as an API process does. @defaultValue true */
  readonly hasMaintenance?: boolean;
  readonly reconcileMs?: number;
  /** Puts something between the engine and its doorbell. */
  readonly wrapDoorbell?: (inner: Doorbell) => Doorbell;
}

export interface TestEngine extends AsyncDisposable {
  readonly engine: Engine;
  readonly db: Database;
  readonly doorbell: Doorbell;
  readonly maintenance: Maintenance | undefined;
}

const freshId = <Id extends string>(): Id => uuidV7(Date.now(), randomBytes(10)) as Id;

export const openTestEngine = async (options: TestEngineOptions): Promise<TestEngine> => {
  const logger = options.logger ?? silentLogger;
  const db = openDatabase({ url: options.databaseUrl, applicationName: "test", logger });
  const inner = await openDoorbell(options.doorbell, { logger });
  const doorbell = options.wrapDoorbell?.(inner) ?? inner;
  const engineOptions: EngineOptions = {
    db,
    doorbell,
    logger,
    metrics: options.metrics ?? silentMetrics,
    ...(options.leaseMs === undefined ? {} : { leaseMs: options.leaseMs }),
    ...(options.lanes === undefined ? {} : { lanes: options.lanes }),
    ...(options.controls === undefined ? {} : { controls: options.controls }),
    ...(options.failpoint === undefined ? {} : { failpoint: options.failpoint }),
  };
  const engine = await openEngine(engineOptions);
  const { hasMaintenance = true, reconcileMs } = options;
  const maintenance = hasMaintenance
    ? startMaintenance(engine, { logger, ...(reconcileMs === undefined ? {} : { reconcileMs }) })
    : undefined;
  const stamping = hasMaintenance ? startStamping(engine, "api", freshId(), logger) : undefined;
  const close = async (): Promise<void> => {
    await maintenance?.stop();
    await stamping?.stop();
    await engine.close();
    await doorbell.close();
    await db.close();
  };
  let closing: Promise<void> | undefined;
  return {
    engine,
    db,
    doorbell,
    maintenance,
    [Symbol.asyncDispose]: async () => (closing ??= close()),
  };
};

export interface EngineWorldOptions extends Omit<TestEngineOptions, "databaseUrl" | "doorbell"> {
  /** @defaultValue postgres, the embedded one */
  readonly kind?: DoorbellKind;
}

export interface EngineWorld extends TestEngine {
  readonly databaseUrl: string;
  readonly address: DoorbellAddress;
  readonly projectId: ProjectId;
  readonly workerTokenId: TokenId;
  /** Compiles and stores a pipeline as a new version. */
  deploy(pipeline: PipelineIrInput): Promise<PipelineVersionId>;
  /** @returns the run's id */
  submit(
    pipelineVersionId: PipelineVersionId,
    more?: Partial<Pick<SubmitInput, "params" | "priority" | "idempotency">>,
  ): Promise<RunId>;
  /** Waits for the run's end. */
  ended(runId: RunId, timeoutMs?: number): Promise<EndedRun>;
  /** As it stands now. */
  look(runId: RunId): Promise<EndedRun>;
  /** A worker that goes with the world. */
  startWorker(slots: number, execute: Execute, extra?: WorkerExtra): Promise<InlineWorker>;
  /** One more engine over the same database and doorbell. */
  openAnother(more?: Omit<TestEngineOptions, "databaseUrl" | "doorbell">): Promise<TestEngine>;
}

export interface EndedRun {
  readonly state: RunState;
  readonly errorCode: string | undefined;
  /** By the step's key: the state of each item. */
  readonly states: Readonly<Record<string, readonly StepState[]>>;
  /** By the step's key: the output of each item, null where there is none. */
  readonly outputs: Readonly<Record<string, readonly (JsonValue | null)[]>>;
  readonly errors: Readonly<Record<string, readonly (string | null)[]>>;
}

export type WorkerExtra = Partial<
  Omit<Parameters<typeof startInlineWorker>[0], "slots" | "execute">
>;

const BUNDLE = "0".repeat(64);

const doorbellFor = async (
  kind: DoorbellKind,
): Promise<{ address: DoorbellAddress; dispose: () => Promise<void> }> => {
  if (kind === "redis") {
    const { url, prefix } = await testRedis();
    return { address: { kind, url, prefix }, dispose: async () => undefined };
  }
  const database = await testDoorbellDatabase();
  const address = { kind, url: database.url };
  await migrateDoorbell(address);
  return { address, dispose: async () => database.drop() };
};

/** A database, a doorbell, a project and an engine: all that a test of behaviour needs. */
export const openEngineWorld = async (options: EngineWorldOptions = {}): Promise<EngineWorld> => {
  const { kind = "postgres", ...engineOptions } = options;
  const database = await testPostgres();
  const { address, dispose } = await doorbellFor(kind);
  const own = { databaseUrl: database.url, doorbell: address };
  const main = await openTestEngine({ ...engineOptions, ...own });
  const { projectId, workerTokenId } = await makeProject(main.db);
  const opened: AsyncDisposable[] = [];
  return {
    ...main,
    databaseUrl: database.url,
    address,
    projectId,
    workerTokenId,
    deploy: async (pipeline) => {
      const id = await deployTestPipeline(main.db, projectId, pipeline);
      // Reading it makes its classes, so that workers which register from now on hear of them at
      // once.
      await main.engine.inside.context.facts.version(main.db, id);
      return id;
    },
    submit: async (pipelineVersionId, more = {}) => {
      const input = { projectId, pipelineVersionId, params: {}, ...more };
      return (await main.engine.submit(input)).runId;
    },
    ended: async (runId, timeoutMs = 15_000) => {
      const hasEnded = async (): Promise<boolean> => {
        const [run] = await main.db.query("select state from run where id = $1", [runId]);
        return run?.["state"] !== "running";
      };
      await waitUntil(hasEnded, { what: `run ${runId} to end`, timeoutMs });
      return lookAt(main.db, runId);
    },
    look: async (runId) => lookAt(main.db, runId),
    startWorker: async (slots, execute, extra = {}) => {
      const worker = await startInlineWorker({
        engine: main.engine,
        doorbell: address,
        tokenId: workerTokenId,
        slots,
        execute,
        ...extra,
      });
      opened.push(worker);
      return worker;
    },
    openAnother: async (more = {}) => {
      const other = await openTestEngine({ ...engineOptions, ...more, ...own });
      opened.push(other);
      return other;
    },
    [Symbol.asyncDispose]: async () => {
      for (const one of opened.toReversed()) await one[Symbol.asyncDispose]();
      await main[Symbol.asyncDispose]();
      await dispose();
      await database.drop();
    },
  };
};

const lookAt = async (db: Database, runId: RunId): Promise<EndedRun> => {
  const [run] = await db.query<{ state: RunState; code: string | null; steps: string[] }>(
    `select r.state, r.error->>'code' as code,
       (select array_agg(s.value->>'key' order by s.ordinality)
        from jsonb_array_elements(v.ir->'steps') with ordinality s) as steps
     from run r join pipeline_version v on v.id = r.pipeline_version_id where r.id = $1`,
    [runId],
  );
  if (run === undefined) throw new Error(`there is no run ${runId}`);
  const rows = await db.query<{
    step: number;
    state: StepState;
    output: JsonValue | null;
    code: string | null;
  }>(
    `select step, state, output, error->>'code' as code from step_run where run_id = $1
     order by step, item`,
    [runId],
  );
  const of = <T>(pick: (row: (typeof rows)[number]) => T): Record<string, T[]> =>
    Object.fromEntries(
      run.steps.map((key, step) => [key, rows.filter((row) => row.step === step).map(pick)]),
    );
  return {
    state: run.state,
    errorCode: run.code ?? undefined,
    states: of((row) => row.state),
    outputs: of((row) => row.output),
    errors: of((row) => row.code),
  };
};

const makeProject = async (
  db: Database,
): Promise<{ projectId: ProjectId; workerTokenId: TokenId }> => {
  const { id: projectId } = await ensureProject(db, freshId<ProjectId>(), "test");
  const workerTokenId = freshId<TokenId>();
  await insertToken(db, {
    id: workerTokenId,
    projectId: null,
    name: "inline workers",
    scope: "worker",
    secretSha256: randomBytes(32),
    expiresInMs: null,
  });
  await insertBundle(db, projectId, BUNDLE, 1);
  return { projectId, workerTokenId };
};

export const deployTestPipeline = async (
  db: Database,
  projectId: ProjectId,
  input: PipelineIrInput,
): Promise<PipelineVersionId> => {
  const { ir } = compilePipeline(input);
  const irSha256 = createHash("sha256").update(JSON.stringify(ir)).digest("hex");
  const [version] = await db.transaction(async (tx) =>
    deployVersions(tx, projectId, BUNDLE, [
      { id: freshId<PipelineVersionId>(), name: ir.name, ir, irSha256 },
    ]),
  );
  if (version === undefined) throw new Error("expected a version");
  return version.id as PipelineVersionId;
};
