/**
 * Tokens of a local installation. The admin token is made here and handed to the API as its first
 * one; from it come a worker's token and the project's, new at every start, the old ones revoked.
 */
import { randomBytes } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";

import type { Client } from "@coppice/contract";
import { formatId, type TokenId, uuidV7 } from "@coppice/core";

const WORKER = "coppice-dev-worker";
const USER = "coppice-dev-user";

const mintToken = (): string => {
  const id = uuidV7(Date.now(), randomBytes(10)) as TokenId;
  return `cpc_${formatId("tok", id).slice("tok_".length)}_${randomBytes(32).toString("base64url")}`;
};

/** Reads the file, or writes a new token to it, readable by this user alone. */
export const requireAdminToken = async (path: string): Promise<string> => {
  if (existsSync(path)) return readFileSync(path, "utf8").trim();
  const token = mintToken();
  await writeFile(path, `${token}\n`, { mode: 0o600, flag: "wx" });
  return token;
};

const revokeOld = async (admin: Client): Promise<void> => {
  let cursor: string | undefined;
  do {
    const page = await admin.tokens.list({
      query: cursor === undefined ? { limit: 500 } : { limit: 500, cursor },
    });
    for (const { id, name, revokedAt } of page.items) {
      if (revokedAt === null && (name === WORKER || name === USER)) {
        await admin.tokens.revoke({ params: { id } });
      }
    }
    cursor = page.nextCursor ?? undefined;
  } while (cursor !== undefined);
};

export const makeWorkerToken = async (admin: Client): Promise<string> => {
  await revokeOld(admin);
  const { token } = await admin.tokens.create({ body: { name: WORKER, scope: "worker" } });
  return token;
};

export const makeProjectToken = async (admin: Client, project: string): Promise<string> => {
  await admin.projects.create({ body: { name: project } });
  const { token } = await admin.tokens.create({
    body: { name: USER, scope: "deploy", project },
  });
  return token;
};
