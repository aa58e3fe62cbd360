/**
 * One DuckDB in memory, with limits, for the time of one step.
 *
 * What must stay true: the memory limit and the thread count are set before the first query; what
 * does not fit spills into the step's work folder and nowhere else; no extension is ever fetched;
 * times have no zone and the session's zone is UTC, so that the machine's own zone changes nothing.
 */
import { join } from "node:path";
import { CoppiceError } from "@coppice/core";
import { type DuckDBConnection, DuckDBInstance, type DuckDBValue } from "@duckdb/node-api";

const INTERRUPT_AGAIN_MS = 20;

export type SqlValue = string | number | boolean | null;
export type RowValue = string | number | boolean | null | readonly RowValue[];
export type Row = Readonly<Record<string, RowValue>>;

/** A batch of rows as DuckDB hands them out; `vectors.ts` alone knows how to read it quickly. */
export type Chunk = NonNullable<
  Awaited<ReturnType<Awaited<ReturnType<DuckDBConnection["stream"]>>["fetchChunk"]>>
>;

export interface TablesOptions {
  /** The step's work folder: spilled data and temporary files live here. */
  readonly dir: string;
  /** DuckDB's own memory limit; the process needs some more. Default 512. */
  readonly memoryLimitMb?: number;
  /** Default 1: a worker runs several steps at a time. */
  readonly threads?: 1 | 2;
  /** Interrupts the query that runs when the attempt is cancelled. */
  readonly signal?: AbortSignal;
}

export interface Tables {
  readonly dir: string;
  /** Runs statements; values are bound to `?` in order. */
  run(sql: string, values?: readonly SqlValue[]): Promise<void>;
  /** Small results only: one JavaScript object per row. */
  rows(sql: string, values?: readonly SqlValue[]): Promise<readonly Row[]>;
  /** Large results: chunk by chunk, with flat memory. */
  chunks(sql: string): AsyncGenerator<Chunk, void, undefined>;
  close(): void;
}

const queryError = (error: unknown): CoppiceError => {
  const message = error instanceof Error ? error.message : String(error);
  if (message.startsWith("Out of Memory")) {
    return new CoppiceError("CPC_OUT_OF_MEMORY", {
      detail: message.split("\n", 1).join(""),
      hint: "Raise memoryLimitMb of openTables, or read fewer columns.",
      cause: error,
    });
  }
  return new CoppiceError("CPC_QUERY_FAILED", { detail: message.slice(0, 2000), cause: error });
};

/** Counts come as bigint and times as Date; a step's output is JSON, so neither may escape. */
const plainValue = (value: unknown): RowValue => {
  if (value === null || value === undefined) return null;
  if (typeof value === "bigint") {
    const number = Number(value);
    return Number.isSafeInteger(number) ? number : value.toString();
  }
  if (typeof value === "string" || typeof value === "boolean" || typeof value === "number") {
    return value;
  }
  if (value instanceof Date) return value.toISOString().replace(/(:\d\d)\.000Z$|Z$/, "$1");
  if (Array.isArray(value)) return value.map(plainValue);
  return JSON.stringify(value) ?? null;
};

const checkOptions = (options: TablesOptions): { memoryLimitMb: number; threads: number } => {
  const memoryLimitMb = options.memoryLimitMb ?? 512;
  const threads = options.threads ?? 1;
  if (!Number.isInteger(memoryLimitMb) || memoryLimitMb < 32) {
    throw new CoppiceError("CPC_INVALID_INPUT", {
      detail: `expected memoryLimitMb to be a whole number from 32. Received: ${memoryLimitMb}`,
    });
  }
  if (threads !== 1 && threads !== 2) {
    throw new CoppiceError("CPC_INVALID_INPUT", {
      detail: `expected threads to be 1 or 2. Received: ${String(threads)}`,
    });
  }
  return { memoryLimitMb, threads };
};

const bind = (values: readonly SqlValue[] | undefined): DuckDBValue[] | undefined =>
  values === undefined ? undefined : [...values];

export const openTables = async (options: TablesOptions): Promise<Tables> => {
  const { memoryLimitMb, threads } = checkOptions(options);
  options.signal?.throwIfAborted();
  const instance = await DuckDBInstance.create(":memory:", {
    threads: String(threads),
    memory_limit: `${memoryLimitMb}MB`,
    temp_directory: join(options.dir, ".duckdb"),
    autoinstall_known_extensions: "false",
    autoload_known_extensions: "false",
  });
  const connection = await instance.connect();
  await connection.run("set TimeZone = 'UTC'");
  let inFlight = 0;
  // DuckDB forgets an interrupt that comes before the query has begun, so it is said again.
  const interrupt = (): void => {
    if (inFlight === 0) return;
    connection.interrupt();
    setTimeout(interrupt, INTERRUPT_AGAIN_MS).unref();
  };
  options.signal?.addEventListener("abort", interrupt);

  const guarded = async <T>(query: () => Promise<T>): Promise<T> => {
    options.signal?.throwIfAborted();
    inFlight += 1;
    try {
      return await query();
    } catch (error) {
      options.signal?.throwIfAborted();
      throw queryError(error);
    } finally {
      inFlight -= 1;
    }
  };
  let isOpen = true;
  return {
    dir: options.dir,
    run: (sql, values) =>
      guarded(async () => {
        await connection.run(sql, bind(values));
      }),
    rows: (sql, values) =>
      guarded(async () => {
        const reader = await connection.runAndReadAll(sql, bind(values));
        return reader
          .getRowObjectsJS()
          .map((row) =>
            Object.fromEntries(Object.entries(row).map(([key, value]) => [key, plainValue(value)])),
          );
      }),
    chunks: async function* (sql) {
      const result = await guarded(() => connection.stream(sql));
      for (;;) {
        const chunk = await guarded(() => result.fetchChunk());
        if (chunk === null || chunk.rowCount === 0) return;
        yield chunk;
      }
    },
    close: () => {
      if (!isOpen) return;
      isOpen = false;
      options.signal?.removeEventListener("abort", interrupt);
      connection.closeSync();
      instance.closeSync();
    },
  };
};

/** Opens, hands out, closes: also when `use` throws. */
export const withTables = async <T>(
  options: TablesOptions,
  use: (tables: Tables) => Promise<T>,
): Promise<T> => {
  const tables = await openTables(options);
  try {
    return await use(tables);
  } finally {
    tables.close();
  }
};
