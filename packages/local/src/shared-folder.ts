/**
 * Our folders in a place that every user may write to (`/var/tmp`, which survives a restart of the
 * machine, else the system's temporary folder). Their names can be guessed; so a folder found there
 * counts only if it is a real folder of the expected owner that nobody else may write to.
 */
import { mkdir, chown, lstat } from "node:fs/promises";
import { existsSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { CoppiceError } from "@coppice/core";

export const sharedFolderPath = (name: string): string =>
  join(existsSync("/var/tmp") ? "/var/tmp" : tmpdir(), name);

export const isOwnedFolder = async (path: string, uid: number): Promise<boolean> => {
  const stat = await lstat(path).catch(() => undefined);
  return stat !== undefined && stat.isDirectory() && stat.uid === uid && (stat.mode & 0o022) === 0;
};

export const requireOwnedFolder = async (path: string, uid: number): Promise<void> => {
  if (await isOwnedFolder(path, uid)) return;
  throw new CoppiceError("CPC_EMBEDDED_START_FAILED", {
    detail: `${path} should be a folder of user ${uid} that nobody else may write to.`,
    hint: "Look who made it; remove it if it is not yours.",
  });
};

/** A folder of this user alone. */
export const makeOwnedFolder = async (path: string, uid: number, gid: number): Promise<void> => {
  await mkdir(path, { mode: 0o700 });
  if (process.getuid?.() === 0) await chown(path, uid, gid);
};
