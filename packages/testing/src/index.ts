/** Real services and waiting, for tests. */
export {
  deployTestPipeline,
  type DoorbellKind,
  type EndedRun,
  type EngineWorld,
  type EngineWorldOptions,
  openEngineWorld,
  openTestEngine,
  type TestEngine,
  type TestEngineOptions,
} from "./engine-fixture.ts";
export {
  type FinishItem,
  type HandWorker,
  registerHandWorker,
  type StartItem,
} from "./hand-worker.ts";
export {
  type Execute,
  failed,
  type InlineAttempt,
  type InlineWorker,
  type InlineWorkerOptions,
  startInlineWorker,
  succeeded,
} from "./inline-worker.ts";
export {
  checkAtRest,
  checkInvariants,
  type CheckOptions,
  type Violation,
  waitForRuns,
} from "./invariants.ts";
export { type TempDir, tempDir } from "./temp-dir.ts";
export { startTestServer, type TestServer, type TestServerOptions } from "./test-server.ts";
export {
  hasRedis,
  type OwnPostgres,
  ownPostgres,
  type OwnRedis,
  ownRedis,
  redisCacheDir,
  type TestDatabase,
  testDoorbellDatabase,
  testPostgres,
  type TestRedis,
  testRedis,
} from "./test-services.ts";
export { type WaitOptions, waitUntil } from "./wait-until.ts";
