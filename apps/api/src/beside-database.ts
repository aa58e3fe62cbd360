/**
 * What an operator does beside the database, without a server and without a token: migrate, make a
 * token, collect what has been kept long enough. This is where an installation's rights begin.
 */
import { openArtifactStore } from "@coppice/artifacts";
import { CoppiceError, type Logger, type ProjectId } from "@coppice/core";
import { type Scope, scopeSchema } from "@coppice/contract";
import { migrateDoorbell } from "@coppice/queue";
import {
  assertSchema,
  type Database,
  ensureProject,
  insertToken,
  migrate,
  openDatabase,
} from "@coppice/store";
import { artifactConfig, databaseConfig, type Environment, loadConfig } from "@coppice/telemetry";
import { DEFAULT_PROJECT } from "./access.ts";
import { collect, type Collected } from "./retention.ts";
import { mintToken, newId } from "./token.ts";

export const migrateAll = async (
  env: Environment,
  logger: Logger,
): Promise<{ from: number; to: number }> => {
  const { databaseUrl } = loadConfig(env, databaseConfig);
  const result = await migrate(databaseUrl, logger);
  const doorbellUrl = env["COPPICE_DOORBELL_DATABASE_URL"]?.trim() ?? "";
  const hasRedis = (env["COPPICE_REDIS_URL"]?.trim() ?? "") !== "";
  if (doorbellUrl !== "" && !hasRedis) {
    await migrateDoorbell({ kind: "postgres", url: doorbellUrl });
  }
  return { ...result };
};

const withDatabase = async <T>(
  env: Environment,
  logger: Logger,
  work: (db: Database) => Promise<T>,
): Promise<T> => {
  const { databaseUrl: url } = loadConfig(env, databaseConfig);
  const db = openDatabase({ url, connectionsMax: 2, applicationName: "coppice-admin", logger });
  try {
    await assertSchema(db);
    return await work(db);
  } finally {
    await db.close();
  }
};

export interface TokenRequest {
  readonly scope: string;
  readonly project: string | undefined;
  readonly name: string | undefined;
}

const parseScope = (text: string): Scope => {
  const parsed = scopeSchema.safeParse(text);
  if (parsed.success) return parsed.data;
  throw new CoppiceError("CPC_INVALID_INPUT", {
    detail: `--scope: expected ${scopeSchema.options.join(", ")}. Received: ${JSON.stringify(text)}`,
  });
};

/** @returns the token's text, which nobody can read again; the project is made where it is new */
export const createToken = async (
  env: Environment,
  logger: Logger,
  request: TokenRequest,
): Promise<{ text: string; scope: Scope; project: string | null }> => {
  const scope = parseScope(request.scope);
  const isGlobal = scope === "worker" || scope === "admin";
  if (isGlobal && request.project !== undefined) {
    throw new CoppiceError("CPC_INVALID_INPUT", {
      detail: `--project: a token with the scope ${scope} is of the whole installation.`,
    });
  }
  return await withDatabase(env, logger, async (db) => {
    const projectName = request.project ?? DEFAULT_PROJECT;
    const project = isGlobal ? null : await ensureProject(db, newId<ProjectId>(), projectName);
    const minted = mintToken();
    await insertToken(db, {
      id: minted.id,
      projectId: project?.id ?? null,
      name: request.name ?? scope,
      scope,
      secretSha256: minted.secretSha256,
      expiresInMs: null,
    });
    return { text: minted.text, scope, project: project?.name ?? null };
  });
};

export const collectGarbage = async (env: Environment, logger: Logger): Promise<Collected> => {
  const config = loadConfig(env, artifactConfig);
  const artifacts = await openArtifactStore(config.artifacts, { endpoint: config.s3Endpoint });
  try {
    return await withDatabase(env, logger, async (db) => await collect(db, artifacts));
  } finally {
    await artifacts.close();
  }
};
