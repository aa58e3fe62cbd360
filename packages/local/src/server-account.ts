/**
 * The user that PostgreSQL runs as. It refuses root; so when we are root it gets an unprivileged
 * user of the system.
 */
import { CoppiceError } from "@coppice/core";
import { runTool, type ServerAccount } from "./run-tool.ts";

export const isRoot = (): boolean => process.getuid?.() === 0;

const lookUp = async (name: string): Promise<ServerAccount | undefined> => {
  const [uid, gid] = await Promise.all([
    runTool("id", ["-u", "--", name]),
    runTool("id", ["-g", "--", name]),
  ]);
  if (uid.exitCode !== 0 || gid.exitCode !== 0) return undefined;
  return { name, uid: Number(uid.stdout), gid: Number(gid.stdout) };
};

/** undefined: we are not root, the server runs as ourselves. */
export const serverAccount = async (): Promise<ServerAccount | undefined> => {
  if (!isRoot()) return undefined;
  for (const name of ["postgres", "nobody"]) {
    const account = await lookUp(name);
    if (account !== undefined && account.uid !== 0) return account;
  }
  throw new CoppiceError("CPC_EMBEDDED_START_FAILED", {
    detail: "PostgreSQL refuses to run as root, and neither `postgres` nor `nobody` exists here.",
    hint: "Run Coppice as an ordinary user, or set COPPICE_DATABASE_URL.",
  });
};

/** Whether this user can enter the folder. */
export const canEnter = async (account: ServerAccount, folder: string): Promise<boolean> =>
  (await runTool("/bin/sh", ["-c", 'cd -- "$1"', "sh", folder], { account })).exitCode === 0;
