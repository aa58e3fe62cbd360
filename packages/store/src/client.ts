/**
 * The one place that opens connections to PostgreSQL.
 *
 * Statements have names, so that the server parses and plans each once per connection. A
 * transaction holds one connection from begin to commit; whoever is inside never waits for anything
 * but the database. Inside, statements that are issued without waiting for each other are sent
 * together and carried out in that order (PostgreSQL's pipeline mode); a name may stand only once
 * among them.
 */
import type { Duplex } from "node:stream";

import { CoppiceError, type Logger } from "@coppice/core";
import pg from "pg";

export interface Statement {
  readonly name: string;
  readonly text: string;
}

export type Row = Record<string, unknown>;

/** What a transaction and the pool have in common. */
export interface Queryable {
  query<R extends Row = Row>(
    statement: Statement | string,
    values?: readonly unknown[],
  ): Promise<R[]>;
}

export interface Database extends Queryable {
  transaction<T>(work: (tx: Queryable) => Promise<T>): Promise<T>;
  /**
   * A connection of its own that hears `notify`; reconnects by itself until closed, and then tells
   * undefined: what was notified in between is not known.
   */
  listen(
    channel: string,
    onPayload: (payload: string | undefined) => void,
  ): Promise<{ close(): Promise<void> }>;
  close(): Promise<void>;
}

export interface DatabaseOptions {
  readonly url: string;
  /** Connections at most. @defaultValue 10 */
  readonly connectionsMax?: number;
  readonly applicationName: string;
  readonly logger: Logger;
  /**
   * How long one statement may take before its connection counts as dead; 0: for ever.
   * @defaultValue 60_000
   */
  readonly queryTimeoutMs?: number;
}

const CONNECTIONS_MAX_DEFAULT = 10;
const CONNECT_TIMEOUT_MS = 5000;
const RELISTEN_DELAY_MS = 500;
const QUERY_TIMEOUT_MS_DEFAULT = 60_000;
/** A socket that is silent for so long is probed: half-open connections look like slow ones. */
const KEEP_ALIVE_MS = 10_000;
/**
 * A process that is frozen or vanished inside a transaction gives its locks back after this: else
 * every other process would wait for the runs that it held.
 */
const IDLE_IN_TRANSACTION_MS = 15_000;

/**
 * Named statements are planned once per connection: left to itself PostgreSQL plans the wide statement of
 * a commit anew each time, which costs more than carrying it out. A plan that was made while a table was
 * empty must hold when it is full, so plans reach rows by key, never by reading a table through.
 */
const PLANNER_OPTIONS = [
  "plan_cache_mode=force_generic_plan",
  "enable_seqscan=off",
  "enable_hashjoin=off",
  "enable_mergejoin=off",
]
  .map((option) => `-c ${option}`)
  .join(" ");

/** SQLSTATE classes and socket errors that mean "the server is not there now". */
const AWAY =
  /^(08|57P0|53300|25P03)|^(ECONNREFUSED|ECONNRESET|EPIPE|ETIMEDOUT|ENOENT|EHOSTUNREACH)$/;

export const isDatabaseAway = (error: unknown): boolean => {
  if (!(error instanceof Error)) return false;
  const { code } = error as { code?: unknown };
  if (typeof code === "string" && AWAY.test(code)) return true;
  return /Connection terminated|timeout exceeded when trying to connect|Client has encountered a connection error|Connection ended|Query read timeout/i.test(
    error.message,
  );
};

/**
 * Values that PostgreSQL can't hold: a NUL character, half of a surrogate pair, a number too large
 * for its column, JSON nested too deeply. Sent again, they fail again.
 */
const UNSTORABLE = new Set(["22021", "22P02", "22P05", "22003", "54000", "54001"]);

const isUnstorable = (error: unknown): error is Error =>
  error instanceof Error && UNSTORABLE.has(String((error as { code?: unknown }).code));

const translate = (error: unknown): unknown => {
  if (isDatabaseAway(error)) {
    return new CoppiceError("CPC_DATABASE_UNREACHABLE", {
      detail: error instanceof Error ? error.message : String(error),
      cause: error,
    });
  }
  return isUnstorable(error)
    ? new CoppiceError("CPC_INVALID_INPUT", {
        detail:
          "expected text without NUL characters and lone surrogates, numbers in range and no deep nesting. " +
          `PostgreSQL: ${error.message}`,
        cause: error,
      })
    : error;
};

const types: pg.CustomTypesConfig = {
  getTypeParser: ((oid: number, format?: "text" | "binary") => {
    // int8: our counts and sizes stay far below 2^53.
    if (oid === 20 && format !== "binary") return Number;
    return format === "binary"
      ? pg.types.getTypeParser(oid, "binary")
      : pg.types.getTypeParser(oid, "text");
  }) as pg.CustomTypesConfig["getTypeParser"],
};

const runOn = async <R extends Row>(
  target: pg.Pool | pg.PoolClient,
  statement: Statement | string,
  values: readonly unknown[],
): Promise<R[]> => {
  try {
    const config =
      typeof statement === "string"
        ? { text: statement, values: [...values] }
        : { name: statement.name, text: statement.text, values: [...values] };
    const result = await target.query<R>(config);
    return result.rows;
  } catch (error) {
    throw translate(error);
  }
};

/**
 * Holds back what is written in this turn of the event loop, so that statements issued together
 * leave in one packet instead of one each: a fifth of a busy API's time was spent on sending them
 * singly.
 */
const sendTogether = (client: pg.PoolClient): void => {
  const { stream } = (client as unknown as { connection: { stream: Duplex } }).connection;
  if (stream.writableCorked > 0) return;
  stream.cork();
  queueMicrotask(() => process.nextTick(() => stream.uncork()));
};

export const openDatabase = (options: DatabaseOptions): Database => {
  const config: pg.PoolConfig = {
    connectionString: options.url,
    max: options.connectionsMax ?? CONNECTIONS_MAX_DEFAULT,
    application_name: options.applicationName,
    connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
    query_timeout: options.queryTimeoutMs ?? QUERY_TIMEOUT_MS_DEFAULT,
    idle_in_transaction_session_timeout: IDLE_IN_TRANSACTION_MS,
    keepAlive: true,
    keepAliveInitialDelayMillis: KEEP_ALIVE_MS,
    options: PLANNER_OPTIONS,
    // Statements that don't wait for each other's rows travel together.
    pipeline: true,
    types,
  };
  const pool = new pg.Pool(config);
  // An idle connection that breaks says so here; the next query opens a new one.
  pool.on("error", (err) => options.logger.warn({ err }, "idle database connection broke"));

  const transaction = async <T>(work: (tx: Queryable) => Promise<T>): Promise<T> => {
    const client = await pool.connect().catch((error: unknown) => {
      throw translate(error);
    });
    let broken: Error | undefined;
    const onError = (error: Error): void => {
      broken = error;
    };
    client.on("error", onError);
    try {
      const tx: Queryable = {
        query: (statement, values = []) => {
          sendTogether(client);
          return runOn(client, statement, values);
        },
      };
      // Sent along with the work's first statement; where it fails, so does the connection.
      const begun = tx.query("begin");
      begun.catch(() => undefined);
      const result = await work(tx);
      await begun;
      await tx.query("commit");
      return result;
    } catch (error) {
      if (
        isDatabaseAway(error) ||
        (error instanceof CoppiceError && error.code === "CPC_DATABASE_UNREACHABLE")
      ) {
        broken ??= error instanceof Error ? error : new Error(String(error));
      } else {
        await client.query("rollback").catch((rollbackError: unknown) => {
          broken ??=
            rollbackError instanceof Error ? rollbackError : new Error(String(rollbackError));
        });
      }
      throw translate(error);
    } finally {
      client.off("error", onError);
      client.release(broken ?? false);
    }
  };

  return {
    query: (statement, values = []) => runOn(pool, statement, values),
    transaction,
    listen: (channel, onPayload) => listenOn(options, channel, onPayload),
    close: () => pool.end(),
  };
};

const listenOn = async (
  options: DatabaseOptions,
  channel: string,
  onPayload: (payload: string | undefined) => void,
): Promise<{ close(): Promise<void> }> => {
  let isClosed = false;
  let client: pg.Client | undefined;
  let timer: NodeJS.Timeout | undefined;

  const connect = async (): Promise<void> => {
    const next = new pg.Client({
      connectionString: options.url,
      application_name: `${options.applicationName}-listen`,
      connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
      keepAlive: true,
      keepAliveInitialDelayMillis: KEEP_ALIVE_MS,
    });
    next.on("error", (err) => options.logger.debug({ err }, "listening connection broke"));
    next.on("end", again);
    next.on("notification", (message) => onPayload(message.payload ?? ""));
    await next.connect();
    await next.query(`listen ${pg.escapeIdentifier(channel)}`);
    client = next;
  };
  function again(): void {
    client = undefined;
    if (isClosed || timer !== undefined) return;
    timer = setTimeout(() => {
      timer = undefined;
      // What was notified while nobody listened is gone: tell the listener to look for itself.
      connect().then(() => onPayload(undefined), again);
    }, RELISTEN_DELAY_MS);
  }

  await connect().catch((error: unknown) => {
    throw translate(error);
  });
  return {
    close: async () => {
      isClosed = true;
      clearTimeout(timer);
      await client?.end().catch(() => undefined);
    },
  };
};
