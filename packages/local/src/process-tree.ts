/**
 * The named processes of `coppice dev` and the demo: started one by one, each waited for until it is
 * ready, stopped in reverse order.
 *
 * What must stay true: nothing is restarted here; every child leads its own process group, so that its
 * own children go with it; no group outlives us. For the last a guard outside sends SIGTERM, then
 * SIGKILL, when we end without stopping (SIGKILL, a crash). A child may also notice by itself: file
 * descriptor 3 is a pipe that nobody writes to and that ends when we do.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createWriteStream, type WriteStream } from "node:fs";
import { mkdir } from "node:fs/promises";
import { dirname } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as pause } from "node:timers/promises";
import { CoppiceError, type Logger } from "@coppice/core";
import { guardAgainstOrphan, type ParentGuard } from "./parent-guard.ts";
import { isProcessAlive, waitFor } from "./wait-for.ts";

/** When a process counts as ready. */
export type Readiness =
  /** A line of its standard output or error matches. */
  | { readonly kind: "line"; readonly pattern: RegExp }
  /** This address answers with a success. */
  | { readonly kind: "http"; readonly url: string }
  /** It has done its work and ended with 0, as a migration does. */
  | { readonly kind: "done" }
  | { readonly kind: "started" };

export interface TreeProcess {
  readonly name: string;
  readonly command: string;
  readonly args: readonly string[];
  /** The whole environment: nothing is inherited. */
  readonly env: Readonly<Record<string, string>>;
  readonly cwd: string;
  /** Everything it says goes here, appended. */
  readonly logFile: string;
  readonly ready: Readiness;
  readonly readyTimeoutMs?: number;
}

export interface StartedProcess {
  readonly pid: number;
  /** What a readiness by line matched, groups included. */
  readonly match?: RegExpExecArray;
}

export interface ProcessExit {
  readonly name: string;
  readonly exitCode: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly lastLines: readonly string[];
  readonly logFile: string;
}

export interface ProcessTreeOptions {
  readonly logger: Logger;
  /** A process that was ready has ended without being asked. */
  readonly onExit: (exit: ProcessExit) => void;
  /** Between SIGTERM and SIGKILL. A worker that drains needs more than its 30 seconds. */
  readonly stopTimeoutMs?: number;
}

export interface ProcessTree {
  /** Resolves when the process is ready; on failure it is stopped again and the reason thrown. */
  start(process: TreeProcess): Promise<StartedProcess>;
  /** All of them in reverse order; safe to call again. */
  stop(): Promise<void>;
}

const LAST_LINES = 20;
const READY_TIMEOUT_MS = 60_000;
const STOP_TIMEOUT_MS = 40_000;
/** After a process's own end: for its last words, and for what it left running in its group. */
const GROUP_REST_MS = 2_000;
const LAST_WORDS_MS = 500;

interface Member {
  readonly spec: TreeProcess;
  readonly child: ChildProcess;
  readonly pid: number;
  readonly guard: ParentGuard;
  readonly lastLines: string[];
  /** The process has ended, its last words are read, nothing of its group is left. */
  readonly settled: Promise<void>;
  match: RegExpExecArray | undefined;
  isExpectedToEnd: boolean;
}

const hasEnded = (child: ChildProcess): boolean =>
  child.exitCode !== null || child.signalCode !== null;

const failure = (member: Member, what: string): CoppiceError => {
  const { spec, lastLines } = member;
  const said = lastLines.slice(-5).join(" | ");
  return new CoppiceError("CPC_PROCESS_EXITED", {
    detail: `\`${spec.name}\` ${what}. It said: ${said === "" ? "nothing" : said}`,
    hint: `Read ${spec.logFile}.`,
    data: { name: spec.name, logFile: spec.logFile },
  });
};

const endingOf = (child: ChildProcess): string =>
  child.signalCode === null ? `ended with ${child.exitCode}` : `was ended by ${child.signalCode}`;

/** Copies what the process says to its log and remembers the end of it. */
const follow = (member: Member, log: WriteStream): void => {
  const { child, spec, lastLines } = member;
  for (const stream of [child.stdout, child.stderr]) {
    if (stream === null) continue;
    stream.pipe(log, { end: false });
    createInterface({ input: stream }).on("line", (line) => {
      lastLines.push(line);
      if (lastLines.length > LAST_LINES) lastLines.shift();
      if (spec.ready.kind === "line") member.match ??= spec.ready.pattern.exec(line) ?? undefined;
    });
  }
};

const signalGroup = (pid: number, signal: NodeJS.Signals): void => {
  try {
    process.kill(-pid, signal);
  } catch {
    // The group is gone.
  }
};

/** Waits for the process's own end, then clears up behind it while the group's number is still its. */
const settle = async (
  { child, pid, guard }: Pick<Member, "child" | "pid" | "guard">,
  log: WriteStream,
): Promise<void> => {
  const closed = once(child, "close");
  await once(child, "exit");
  // Someone whom the process has started may hold its output open: don't wait for that one.
  await Promise.race([closed, pause(LAST_WORDS_MS, undefined, { ref: false })]);
  if (isProcessAlive(-pid)) {
    signalGroup(pid, "SIGTERM");
    await waitFor(() => (isProcessAlive(-pid) ? undefined : true), GROUP_REST_MS);
    signalGroup(pid, "SIGKILL");
  }
  guard.release();
  child.stdout?.destroy();
  child.stderr?.destroy();
  await new Promise<void>((resolve) => log.end(() => resolve()));
};

const launch = async (spec: TreeProcess, stopTimeoutMs: number): Promise<Member> => {
  await mkdir(dirname(spec.logFile), { recursive: true });
  const log = createWriteStream(spec.logFile, { flags: "a", mode: 0o600 });
  await once(log, "open");
  const child = spawn(spec.command, [...spec.args], {
    cwd: spec.cwd,
    env: { ...spec.env },
    stdio: ["ignore", "pipe", "pipe", "pipe"],
    // A group of its own: a Ctrl+C in the terminal reaches us alone, and we stop them in order.
    detached: true,
  });
  const spawned = await new Promise<Error | undefined>((resolve) => {
    child.once("spawn", () => resolve(undefined));
    child.once("error", resolve);
  });
  const { pid } = child;
  if (spawned !== undefined || pid === undefined) {
    log.end();
    throw new CoppiceError("CPC_PROCESS_EXITED", {
      detail: `\`${spec.name}\` can't be started: ${spawned?.message ?? "it has no pid"}`,
      cause: spawned,
    });
  }
  // A child that closes descriptor 3, or one that we kill, breaks this pipe: nothing to do about it.
  child.stdio[3]?.once("error", () => undefined);
  const guard = guardAgainstOrphan({
    pid,
    isGroup: true,
    signal: "TERM",
    killAfterMs: stopTimeoutMs,
  });
  const member: Member = {
    spec,
    child,
    pid,
    guard,
    lastLines: [],
    settled: settle({ child, pid, guard }, log),
    match: undefined,
    isExpectedToEnd: spec.ready.kind === "done",
  };
  follow(member, log);
  return member;
};

const answers = async (url: string): Promise<boolean> => {
  try {
    const response = await fetch(url, { signal: AbortSignal.timeout(2000) });
    await response.body?.cancel();
    return response.ok;
  } catch {
    return false;
  }
};

const isReady = async (member: Member): Promise<boolean> => {
  const { ready } = member.spec;
  if (ready.kind === "line") return member.match !== undefined;
  if (ready.kind === "http") return answers(ready.url);
  return ready.kind === "done" ? member.child.exitCode === 0 : true;
};

const awaitReady = async (member: Member): Promise<void> => {
  const { spec, child } = member;
  const timeoutMs = spec.readyTimeoutMs ?? READY_TIMEOUT_MS;
  const outcome = await waitFor(async () => {
    const ended = hasEnded(child);
    // What it said last may still be on its way through the pipe.
    if (ended) await member.settled;
    if (await isReady(member)) return "ready";
    return ended ? "ended" : undefined;
  }, timeoutMs);
  if (outcome === "ended") throw failure(member, endingOf(child));
  if (outcome === undefined) throw failure(member, `was not ready after ${timeoutMs} ms`);
};

const stopMember = async (member: Member, stopTimeoutMs: number): Promise<void> => {
  member.isExpectedToEnd = true;
  const { child, pid } = member;
  if (!hasEnded(child)) {
    signalGroup(pid, "SIGTERM");
    await waitFor(() => (hasEnded(child) ? true : undefined), stopTimeoutMs);
    if (!hasEnded(child)) signalGroup(pid, "SIGKILL");
  }
  await member.settled;
};

export const createProcessTree = (options: ProcessTreeOptions): ProcessTree => {
  const stopTimeoutMs = options.stopTimeoutMs ?? STOP_TIMEOUT_MS;
  const members: Member[] = [];
  let stopping: Promise<void> | undefined;

  const watch = async (member: Member): Promise<void> => {
    const { spec, child, lastLines } = member;
    await member.settled;
    if (member.isExpectedToEnd) return;
    options.logger.error({ name: spec.name, logFile: spec.logFile }, "a process ended by itself");
    options.onExit({
      name: spec.name,
      exitCode: child.exitCode,
      signal: child.signalCode,
      lastLines: [...lastLines],
      logFile: spec.logFile,
    });
  };

  const stopAll = async (): Promise<void> => {
    for (let member = members.pop(); member !== undefined; member = members.pop()) {
      await stopMember(member, stopTimeoutMs);
      options.logger.debug({ name: member.spec.name }, "a process was stopped");
    }
  };

  return {
    start: async (spec) => {
      if (stopping !== undefined) throw new Error(`The tree stops: ${spec.name} is not started.`);
      const member = await launch(spec, stopTimeoutMs);
      members.push(member);
      try {
        await awaitReady(member);
      } catch (error) {
        await stopMember(member, stopTimeoutMs);
        const place = members.indexOf(member);
        if (place >= 0) members.splice(place, 1);
        throw error;
      }
      void watch(member);
      const started: StartedProcess = { pid: member.pid };
      return member.match === undefined ? started : { ...started, match: member.match };
    },
    stop: async () => {
      stopping ??= stopAll();
      await stopping;
    },
  };
};
