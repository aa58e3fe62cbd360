/**
 * Who may touch a database folder: one process at a time.
 *
 * `owner.json` names it by pid and by the moment that process started, because pids come again. What
 * must stay true: a living owner is never disturbed; a dead one's server is stopped cleanly before
 * another starts in its folder.
 */
import { readFileSync } from "node:fs";
import { link, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { CoppiceError, type Logger } from "@coppice/core";
import { jsonFields } from "./json-fields.ts";
import { runTool } from "./run-tool.ts";
import { isProcessAlive, waitForProcessEnd } from "./wait-for.ts";

const hasCode = (error: unknown, code: string): boolean =>
  error instanceof Error && "code" in error && error.code === code;

/** When the process started, in whatever unit the system has: only equality counts. */
const startMark = async (pid: number): Promise<string> => {
  if (process.platform === "linux") {
    try {
      const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
      // Field 22, counted behind the command's name, which may hold spaces itself.
      return stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19] ?? "";
    } catch {
      return "";
    }
  }
  return (await runTool("ps", ["-o", "lstart=", "-p", `${pid}`])).stdout.trim();
};

const readOwner = async (file: string): Promise<{ text: string; pid: number; mark: string }> => {
  const text = await readFile(file, "utf8").catch(() => "");
  const { pid, mark } = jsonFields(text);
  return { text, pid: Number(pid ?? 0), mark: typeof mark === "string" ? mark : "" };
};

const inUse = (pid: number, home: string): CoppiceError =>
  new CoppiceError("CPC_EMBEDDED_START_FAILED", {
    detail: `Process ${pid} uses the database in ${home}.`,
    hint: "Stop the other `coppice dev` of this project first.",
    data: { pid },
  });

const claim = async (file: string, text: string): Promise<boolean> => {
  try {
    await writeFile(file, text, { flag: "wx", mode: 0o600 });
    return true;
  } catch (error) {
    if (hasCode(error, "EEXIST")) return false;
    throw error;
  }
};

/** Takes the folder for this process; returns how to give it back. */
export const takeOwnership = async (home: string): Promise<() => Promise<void>> => {
  const file = join(home, "owner.json");
  const ours = JSON.stringify({ pid: process.pid, mark: await startMark(process.pid) });
  for (let round = 0; round < 3; round += 1) {
    if (await claim(file, ours)) return async () => rm(file, { force: true });
    const found = await readOwner(file);
    if (found.pid > 0 && isProcessAlive(found.pid) && found.mark === (await startMark(found.pid))) {
      throw inUse(found.pid, home);
    }
    // Moving the stale file away succeeds for one contender; if another has claimed the folder since
    // we read the file, what we moved is the new owner's, and goes back.
    const aside = `${file}.stale-${process.pid}`;
    await rename(file, aside).catch(() => undefined);
    const moved = await readOwner(aside);
    if (moved.text !== "" && moved.text !== found.text)
      await link(aside, file).catch(() => undefined);
    await rm(aside, { force: true });
  }
  throw inUse((await readOwner(file)).pid, home);
};

export interface PostmasterFile {
  readonly pid: number;
  readonly status: string;
}

/** What PostgreSQL writes about itself: line 1 its pid, line 8 "starting", "ready" or "stopping". */
export const readPostmasterFile = async (cluster: string): Promise<PostmasterFile | undefined> => {
  const text = await readFile(join(cluster, "postmaster.pid"), "utf8").catch(() => undefined);
  if (text === undefined) return undefined;
  const lines = text.split("\n");
  const pid = Number(lines[0]);
  return Number.isInteger(pid) && pid > 0 ? { pid, status: (lines[7] ?? "").trim() } : undefined;
};

const isServerOf = async (pid: number, cluster: string): Promise<boolean> => {
  if (!isProcessAlive(pid)) return false;
  if (process.platform === "linux") {
    const words = await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "");
    return words.split("\0").includes(cluster);
  }
  return (await runTool("ps", ["-o", "command=", "-p", `${pid}`])).stdout.includes(cluster);
};

/** Stops the server that a dead owner left running, and clears its traces. */
export const stopStaleServer = async (cluster: string, logger: Logger): Promise<void> => {
  const found = await readPostmasterFile(cluster);
  if (found === undefined) return;
  if (await isServerOf(found.pid, cluster)) {
    logger.warn({ pid: found.pid }, "a PostgreSQL server of an earlier run is stopped first");
    for (const [signal, timeoutMs] of [
      ["SIGINT", 20_000],
      ["SIGQUIT", 5_000],
    ] as const) {
      if (isProcessAlive(found.pid)) process.kill(found.pid, signal);
      if (await waitForProcessEnd(found.pid, timeoutMs)) break;
    }
    if (isProcessAlive(found.pid)) throw inUse(found.pid, cluster);
  }
  await rm(join(cluster, "postmaster.pid"), { force: true });
};
