/**
 * Our programs as a person starts them: the built bins, a process each, their words collected.
 *
 * What must stay true: a program gets the environment that the test names and nothing else, leads a
 * process group of its own, and is gone when its test is over, whatever the test came to.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { waitUntil } from "@coppice/testing";

export const ROOT = fileURLToPath(new URL("../..", import.meta.url));

export type Environment = Readonly<Record<string, string>>;

/** What every program needs and what holds no secret. */
export const BASE_ENV: Environment = {
  PATH: process.env["PATH"] ?? "/usr/local/bin:/usr/bin:/bin",
  NO_COLOR: "1",
  // By this the script around the tests finds what was left running.
  COPPICE_CI_MARK: process.env["COPPICE_CI_MARK"] ?? "",
};

export interface Ended {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface Program extends AsyncDisposable {
  readonly pid: number;
  readonly stdout: () => string;
  readonly stderr: () => string;
  readonly ended: Promise<Ended>;
  /** To the process alone, as an operator's `kill`. */
  kill(signal: NodeJS.Signals): void;
  /** Waits for it in stdout; the words so far are in the message where it doesn't come. */
  said(pattern: RegExp, timeoutMs?: number): Promise<RegExpExecArray>;
}

export interface ProgramOptions {
  readonly env?: Environment;
  readonly cwd: string;
}

const hasEnded = (child: ChildProcess): boolean =>
  child.exitCode !== null || child.signalCode !== null;

/** A test run that is ended early takes its programs along. */
const running = new Set<ChildProcess>();
process.once("exit", () => {
  for (const child of running) child.kill("SIGKILL");
});

export type BinName = "coppice" | "coppice-api" | "coppice-scheduler" | "coppice-worker";

export const start = (
  bin: BinName,
  args: readonly string[],
  { env = {}, cwd }: ProgramOptions,
): Program => {
  const child = spawn(process.execPath, [join(ROOT, "node_modules/.bin", bin), ...args], {
    cwd,
    env: { ...BASE_ENV, ...env },
    stdio: ["ignore", "pipe", "pipe"],
    detached: true,
  });
  const { pid } = child;
  if (pid === undefined) throw new Error(`${bin} could not be started`);
  running.add(child);
  child.once("exit", () => running.delete(child));
  let stdout = "";
  let stderr = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => (stdout += text));
  child.stderr.setEncoding("utf8").on("data", (text: string) => (stderr += text));
  const ended = new Promise<Ended>((resolve) => {
    child.once("close", (code, signal) => resolve({ code, signal, stdout, stderr }));
  });
  const said = async (pattern: RegExp, timeoutMs = 60_000): Promise<RegExpExecArray> =>
    waitUntil(
      () => {
        const found = pattern.exec(stdout);
        if (found === null && hasEnded(child)) {
          throw new Error(`${bin} ended with ${child.exitCode ?? child.signalCode}`);
        }
        return found;
      },
      { what: `${bin} to say ${String(pattern)}`, timeoutMs },
    ).catch((cause: unknown) => {
      throw new Error(`${String(cause)}\n${stdout}\n${stderr}`, { cause });
    });
  return {
    pid,
    stdout: () => stdout,
    stderr: () => stderr,
    ended,
    said,
    kill: (signal) => {
      child.kill(signal);
    },
    [Symbol.asyncDispose]: async () => {
      if (!hasEnded(child)) child.kill("SIGTERM");
      const timer = setTimeout(() => child.kill("SIGKILL"), 20_000);
      await ended;
      clearTimeout(timer);
    },
  };
};

/** Runs it to its end. */
export const run = async (
  bin: BinName,
  args: readonly string[],
  options: ProgramOptions,
): Promise<Ended> => start(bin, args, options).ended;

interface ProcessRow {
  readonly pid: number;
  readonly parent: number;
}

const processes = (): ProcessRow[] =>
  readdirSync("/proc").flatMap((name) => {
    if (!/^\d+$/.test(name)) return [];
    try {
      // The name in parentheses may hold anything; what follows it does not.
      const rest = readFileSync(`/proc/${name}/stat`, "utf8")
        .replace(/^.*\) /s, "")
        .split(" ");
      return rest[0] === "Z" ? [] : [{ pid: Number(name), parent: Number(rest[1]) }];
    } catch {
      return [];
    }
  });

/** The process and everything below it. */
export const treeOf = (pid: number): number[] => {
  const rows = processes();
  const found = [pid];
  for (const parent of found) {
    found.push(...rows.filter((row) => row.parent === parent).map((row) => row.pid));
  }
  return found;
};

export const aliveOf = (pids: readonly number[]): number[] => {
  const alive = new Set(processes().map((row) => row.pid));
  return pids.filter((pid) => alive.has(pid));
};

const textOf = (path: string): string => {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
};

/** What a process was told at its start: environment and arguments. */
export const toldTo = (pid: number): string =>
  textOf(`/proc/${pid}/environ`) + textOf(`/proc/${pid}/cmdline`);

/** Processes whose environment, arguments or standard streams name this text. */
export const processesNaming = (text: string): number[] =>
  processes()
    .map(({ pid }) => pid)
    .filter((pid) => pid !== process.pid && toldTo(pid).includes(text));
