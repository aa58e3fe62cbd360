/** What a laptop lacks: a database server, a private Redis for tests, a tree of processes. */
export {
  type EmbeddedPostgres,
  type EmbeddedPostgresOptions,
  startEmbeddedPostgres,
} from "./embedded-postgres.ts";
export { freePort } from "./free-port.ts";
export { DOORBELL_DATABASE, MAIN_DATABASE } from "./postgres-cluster.ts";
export { type PrivateRedis, type PrivateRedisOptions, startPrivateRedis } from "./private-redis.ts";
export {
  createProcessTree,
  type ProcessExit,
  type ProcessTree,
  type ProcessTreeOptions,
  type Readiness,
  type StartedProcess,
  type TreeProcess,
} from "./process-tree.ts";
