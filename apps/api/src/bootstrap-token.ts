/**
 * The first token. COPPICE_BOOTSTRAP_TOKEN_FILE names a file: one that holds a token is taken in as
 * an admin token; where it is absent or empty, a token is made and written there for its owner only.
 *
 * What must stay true: a file is never overwritten that holds anything; a token that was revoked is
 * not brought back by a restart.
 */
import { mkdir, open, readFile } from "node:fs/promises";
import { dirname } from "node:path";
import { CoppiceError, type Logger } from "@coppice/core";
import { type Database, insertToken } from "@coppice/store";
import { type MintedToken, mintToken, parseToken } from "./token.ts";

const readToken = async (file: string): Promise<MintedToken | undefined> => {
  const text = await readFile(file, "utf8").catch((error: unknown) => {
    if (error instanceof Error && "code" in error && error.code === "ENOENT") return "";
    throw error;
  });
  if (text.trim() === "") return undefined;
  const token = parseToken(text.trim());
  if (token !== undefined) return token;
  throw new CoppiceError("CPC_INVALID_CONFIG", {
    detail: "COPPICE_BOOTSTRAP_TOKEN_FILE: expected a token such as cpc_… or an empty file.",
  });
};

const writeToken = async (file: string, token: MintedToken): Promise<void> => {
  await mkdir(dirname(file), { recursive: true });
  const handle = await open(file, "w", 0o600);
  try {
    // The mode above counts only for a new file.
    await handle.chmod(0o600);
    await handle.writeFile(`${token.text}\n`);
    await handle.sync();
  } finally {
    await handle.close();
  }
};

export const ensureBootstrapToken = async (
  db: Database,
  file: string,
  logger: Logger,
): Promise<void> => {
  const found = await readToken(file);
  const token = found ?? mintToken();
  // First the file: a token that is only written is taken in by the next start.
  if (found === undefined) await writeToken(file, token);
  const added = await insertToken(db, {
    id: token.id,
    projectId: null,
    name: "bootstrap",
    scope: "admin",
    secretSha256: token.secretSha256,
    expiresInMs: null,
  });
  if (added !== undefined) logger.info({ file }, "bootstrap token taken in");
};
