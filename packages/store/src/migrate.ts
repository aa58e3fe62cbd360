/**
 * Brings a database to this program's schema, one numbered file at a time, forward only.
 *
 * What must stay true: one migrator at a time (an advisory lock), one transaction per file, a file is
 * never edited once released. A database that is newer than the program is refused, not guessed at.
 */
import { createHash } from "node:crypto";
import { readdir, readFile } from "node:fs/promises";

import { CoppiceError, type Logger } from "@coppice/core";

import { type Database, openDatabase, type Queryable } from "./client.ts";

const MIGRATIONS = new URL("../migrations/", import.meta.url);
const FILE_NAME = /^(\d{6})_[a-z0-9_]+\.sql$/;
/** Any constant will do, as long as nothing else of ours uses it. */
const LOCK_KEY = 4_600_001;

interface Migration {
  readonly number: number;
  readonly name: string;
  readonly sql: string;
  readonly sha256: string;
}

const readMigrations = async (): Promise<Migration[]> => {
  const names = (await readdir(MIGRATIONS)).filter((name) => FILE_NAME.test(name)).toSorted();
  return Promise.all(
    names.map(async (name) => {
      const sql = await readFile(new URL(name, MIGRATIONS), "utf8");
      return {
        number: Number(name.slice(0, 6)),
        name,
        sql,
        sha256: createHash("sha256").update(sql).digest("hex"),
      };
    }),
  );
};

const appliedNumber = async (db: Queryable): Promise<number> => {
  const [table] = await db.query<{ found: boolean }>(
    "select to_regclass('schema_migration') is not null as found",
  );
  if (table?.found !== true) return 0;
  const [row] = await db.query<{ number: number }>(
    "select coalesce(max(number), 0)::int as number from schema_migration",
  );
  return row?.number ?? 0;
};

const refuseNewer = (found: number, known: number): void => {
  if (found > known) {
    throw new CoppiceError("CPC_DATABASE_TOO_NEW", {
      detail: `expected schema ${known} or older. Found: ${found}.`,
    });
  }
};

/** @throws CPC_DATABASE_TOO_NEW, CPC_MIGRATION_FAILED, CPC_DATABASE_UNREACHABLE */
export const migrate = async (
  url: string,
  logger: Logger,
): Promise<{ readonly from: number; readonly to: number }> => {
  const migrations = await readMigrations();
  const known = migrations.at(-1)?.number ?? 0;
  const db = openDatabase({
    url,
    connectionsMax: 1,
    applicationName: "coppice-migrate",
    logger,
    queryTimeoutMs: 0,
  });
  try {
    return await db.transaction(async (tx) => {
      await tx.query("select pg_advisory_xact_lock($1)", [LOCK_KEY]);
      const from = await appliedNumber(tx);
      refuseNewer(from, known);
      await tx.query(
        `create table if not exists schema_migration (
           number integer primary key, name text not null, sha256 text not null,
           applied_at timestamptz not null default clock_timestamp())`,
      );
      for (const migration of migrations) {
        if (migration.number > from) await apply(tx, migration, logger);
      }
      return { from, to: known };
    });
  } finally {
    await db.close();
  }
};

const apply = async (tx: Queryable, migration: Migration, logger: Logger): Promise<void> => {
  try {
    await tx.query(migration.sql);
  } catch (error) {
    throw new CoppiceError("CPC_MIGRATION_FAILED", {
      detail: `${migration.name}: ${error instanceof Error ? error.message : String(error)}`,
      cause: error,
    });
  }
  await tx.query("insert into schema_migration (number, name, sha256) values ($1, $2, $3)", [
    migration.number,
    migration.name,
    migration.sha256,
  ]);
  logger.info({ migration: migration.name }, "migration applied");
};

/** @throws CPC_DATABASE_TOO_OLD, CPC_DATABASE_TOO_NEW */
export const assertSchema = async (db: Database): Promise<void> => {
  const migrations = await readMigrations();
  const known = migrations.at(-1)?.number ?? 0;
  const found = await appliedNumber(db);
  refuseNewer(found, known);
  if (found < known) {
    throw new CoppiceError("CPC_DATABASE_TOO_OLD", {
      detail: `expected schema ${known}. Found: ${found}.`,
    });
  }
};
