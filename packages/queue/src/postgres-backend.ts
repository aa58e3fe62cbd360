/**
 * BullMQ on PostgreSQL: the doorbell that needs nothing installed. What must stay true: it has its
 * own database and a role without rights elsewhere; few connections; a bell may be lost with the
 * server, since the truth is elsewhere, and that is what makes this backend fast enough.
 *
 * Measured on two cores, bare BullMQ: 1,357 bells/s as BullMQ comes; 2,281 with
 * `synchronous_commit=off`; 3,036 with that, four connections and prepared statements. Unlogged
 * tables give a tenth more, but a crash would empty BullMQ's own record of its migrations.
 */
import { CoppiceError, type Logger } from "@coppice/core";
import {
  type BackendFactory,
  createPostgresBackend,
  type PgPool,
  Queue,
  runMigrations,
  Worker,
} from "bullmq";
import { Client, Pool, type PoolClient, type PoolConfig, type QueryResult } from "pg";
import { z } from "zod";
import { type DoorbellAddress, describeAddress, MAX_CLASSES } from "./address.ts";
import {
  type Backend,
  type BackendOptions,
  COMPLETED_AGE_S,
  FAILED_AGE_S,
  processorOf,
  queueOptions,
  type Side,
  workerOptions,
} from "./backend.ts";
import { withinMs } from "./deadline.ts";

export type PostgresAddress = Extract<DoorbellAddress, { kind: "postgres" }>;

/** BullMQ's own name for its schema; a pool that we hand over has to point at it. */
const SCHEMA = "bullmq";
/** More only makes the server's processes wait for each other: 4 was fastest on two cores. */
const POOL_SIZE: Readonly<Record<Side, number>> = { producer: 2, listener: 4 };
const CONNECT_TIMEOUT_MS = 2000;
const QUERY_TIMEOUT_MS = 5000;
const SKEW_WARNING_MS = 2000;

const poolConfig = (address: PostgresAddress, max: number): PoolConfig => ({
  connectionString: address.url,
  max,
  connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
  query_timeout: QUERY_TIMEOUT_MS,
  keepAlive: true,
  keepAliveInitialDelayMillis: 10_000,
  options: `-c search_path=${SCHEMA} -c synchronous_commit=off`,
});

interface TwoPools {
  readonly options: { readonly keepAlive: true };
  query(text: string, params?: readonly unknown[]): Promise<QueryResult>;
  connect(): Promise<PoolClient>;
  end(): Promise<void>;
  on(): TwoPools;
  removeAllListeners(): TwoPools;
}

/**
 * Two pools behind one face: a small one for queries, each prepared once per connection, and one
 * for the connections that LISTEN, one per class, which would otherwise use the small one up.
 */
const openPool = (address: PostgresAddress, options: BackendOptions): TwoPools => {
  const queries = new Pool(poolConfig(address, POOL_SIZE[options.side]));
  // A producer never listens: BullMQ borrows the one connection to look at its schema's version.
  const sessions = options.side === "producer" ? 1 : MAX_CLASSES + 1;
  const listeners = new Pool(poolConfig(address, sessions));
  const statementNames = new Map<string, string>();
  const guarded = new WeakSet<object>();
  const onError = (error: unknown): void => {
    options.logger.debug({ err: error }, "a connection of the PostgreSQL doorbell broke");
  };
  queries.on("error", onError);
  listeners.on("error", onError);
  const pool: TwoPools = {
    options: { keepAlive: true },
    query: async (text, params = []) => {
      let name = statementNames.get(text);
      if (name === undefined) {
        name = `d${statementNames.size}`;
        statementNames.set(text, name);
      }
      return queries.query({ name, text, values: [...params] });
    },
    connect: async () => {
      const client = await listeners.connect();
      if (guarded.has(client)) return client;
      guarded.add(client);
      client.on("error", onError);
      // BullMQ takes all listeners off a client before it ends it; an error after that would be
      // nobody's, and end the process.
      const removeAll = client.removeAllListeners.bind(client);
      client.removeAllListeners = (event) => {
        removeAll(event);
        client.on("error", onError);
        return client;
      };
      return client;
    },
    end: async () => {
      await Promise.allSettled([queries.end(), listeners.end()]);
    },
    // BullMQ adds an error listener per queue; ours is there already.
    on: () => pool,
    removeAllListeners: () => pool,
  };
  return pool;
};

const warnOfSkew = async (pool: TwoPools, logger: Logger): Promise<void> => {
  const before = Date.now();
  const { rows } = await pool.query("SELECT extract(epoch FROM clock_timestamp()) * 1000 AS ms");
  const [{ ms }] = z.tuple([z.object({ ms: z.coerce.number() })]).parse(rows);
  const skewMs = Math.round(ms - (before + Date.now()) / 2);
  if (Math.abs(skewMs) < SKEW_WARNING_MS) return;
  // Only BullMQ's redelivery of forgotten bells goes by this clock; leases go by the database's.
  logger.warn({ skewMs }, "This machine's clock and PostgreSQL's differ");
};

/** BullMQ would notice too, but only at the first bell, and as an error of its own. */
const requireSchema = async (pool: TwoPools): Promise<void> => {
  const { rows } = await pool.query("SELECT to_regclass($1) IS NULL AS missing", [
    `${SCHEMA}.migration`,
  ]);
  const [{ missing }] = z.tuple([z.object({ missing: z.boolean() })]).parse(rows);
  if (missing) {
    throw new CoppiceError("CPC_DATABASE_TOO_OLD", {
      detail: "The doorbell's database has no schema yet.",
    });
  }
};

export const openPostgresBackend = (address: PostgresAddress, options: BackendOptions): Backend => {
  const pool = openPool(address, options);
  // BullMQ's types want Redis options here; the factory brings the real connection.
  const base = { connection: {} };
  // BullMQ's types for a pool and those of `pg` differ in their overloads, not in what they do.
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion
  const connection = pool as unknown as PgPool;
  const factory: BackendFactory = (name, opts, kind) =>
    createPostgresBackend(name, { ...opts, connection }, kind);
  return {
    kind: "postgres",
    unreachable: "CPC_DATABASE_UNREACHABLE",
    // No count here: BullMQ would read the whole list at every completion.
    keep: {
      attempts: 1,
      removeOnComplete: { age: COMPLETED_AGE_S },
      removeOnFail: { age: FAILED_AGE_S },
    },
    // BullMQ's bulk insert makes and drops two tables: at least 2.9 ms, where one bell takes 0.5.
    addSingly: 6,
    // NOTIFY wakes every waiter; the wait only bounds a lost notification.
    waitSeconds: 5,
    check: async () => {
      try {
        await warnOfSkew(pool, options.logger);
      } catch (error) {
        throw new CoppiceError("CPC_DATABASE_UNREACHABLE", {
          detail: `No connection to the doorbell at ${describeAddress(address)}.`,
          cause: error,
        });
      }
      await requireSchema(pool);
    },
    isConnected: () => true,
    openQueue: (name) => new Queue(name, { ...base, ...queueOptions }, factory),
    openWorker: (name, loop) =>
      new Worker(name, processorOf(loop), { ...base, ...workerOptions(loop) }, factory),
    close: async (deadlineMs) => {
      await withinMs(pool.end(), deadlineMs);
    },
  };
};

/**
 * Every bell is inserted, updated twice and deleted later. Without early vacuums the index of
 * waiting bells fills with dead entries, and taking the first gets slow.
 */
const TUNE_TABLES = ["job", "event"].map(
  (table) =>
    `ALTER TABLE ${SCHEMA}.${table} SET (autovacuum_vacuum_scale_factor = 0.02, ` +
    "autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_insert_scale_factor = 0.5, " +
    "autovacuum_analyze_scale_factor = 0.1, autovacuum_vacuum_cost_delay = 0)",
);

/** Brings BullMQ's schema up to date; whoever migrates calls it before the doorbell opens. */
export const migratePostgresDoorbell = async (address: PostgresAddress): Promise<void> => {
  const client = new Client({
    connectionString: address.url,
    connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
  });
  client.on("error", () => undefined);
  try {
    await client.connect();
  } catch (error) {
    throw new CoppiceError("CPC_DATABASE_UNREACHABLE", {
      detail: `No connection to the doorbell at ${describeAddress(address)}.`,
      cause: error,
    });
  }
  try {
    await runMigrations(client, SCHEMA);
    for (const statement of TUNE_TABLES) await client.query(statement);
  } catch (error) {
    throw new CoppiceError("CPC_MIGRATION_FAILED", {
      detail: "The doorbell's schema could not be brought up to date.",
      cause: error,
    });
  } finally {
    await withinMs(client.end(), CONNECT_TIMEOUT_MS);
  }
};
