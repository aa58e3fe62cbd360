/**
 * Programs of Coppice as processes that a test may kill, stop, continue and start again.
 *
 * What must stay true: nothing that was started here outlives `closeAll`, whatever state it is in;
 * a program that ended by itself, unasked, is known by its log.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, openSync, readdirSync, readFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { waitUntil } from "@coppice/testing";

export type App = "api" | "scheduler" | "worker";

export interface Exit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

export interface Program {
  readonly name: string;
  readonly app: App;
  readonly logFile: string;
  pid(): number;
  isRunning(): boolean;
  /** Waits until it answers, where it can. */
  start(more?: Readonly<Record<string, string>>, nodeFlags?: readonly string[]): Promise<void>;
  signal(signal: NodeJS.Signals): void;
  /** Sends the signal and waits for the end. */
  end(signal?: NodeJS.Signals): Promise<Exit>;
  ended(timeoutMs?: number): Promise<Exit>;
  /** Processes whose parent it is. */
  children(): number[];
}

export interface ProgramSpec {
  readonly name: string;
  readonly app: App;
  readonly dir: string;
  readonly env: Readonly<Record<string, string>>;
  readonly isReady: () => Promise<boolean>;
}

const require = createRequire(import.meta.url);
const START_TIMEOUT_MS = 30_000;
const END_TIMEOUT_MS = 20_000;

const binOf = async (app: App): Promise<string> => {
  const path = require.resolve(`@coppice/${app}/package.json`);
  const { bin } = JSON.parse(await readFile(path, "utf8")) as { bin: Record<string, string> };
  return join(dirname(path), bin[`coppice-${app}`] ?? "");
};

/** The parent stands after the name, which may hold anything but ends with the last bracket. */
const parentOf = (pid: string): number => {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    return Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[1]);
  } catch {
    return 0;
  }
};

export const childrenOf = (parent: number): number[] =>
  readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name) && parentOf(name) === parent)
    .map(Number);

export const createProgram = (spec: ProgramSpec): Program => {
  const logFile = join(spec.dir, `${spec.name}.log`);
  let child: ChildProcess | undefined;
  let exit: Promise<Exit> | undefined;
  const isRunning = (): boolean =>
    child !== undefined && child.exitCode === null && child.signalCode === null;
  const pid = (): number => {
    if (child?.pid === undefined) throw new Error(`${spec.name} was never started`);
    return child.pid;
  };
  const ended = async (timeoutMs = END_TIMEOUT_MS): Promise<Exit> => {
    await waitUntil(() => !isRunning(), { what: `${spec.name} to end`, timeoutMs });
    return (await exit) ?? { code: null, signal: null };
  };
  const signal = (name: NodeJS.Signals): void => {
    if (isRunning()) process.kill(pid(), name);
  };
  return {
    name: spec.name,
    app: spec.app,
    logFile,
    pid,
    isRunning,
    signal,
    ended,
    children: () => childrenOf(pid()),
    end: async (name = "SIGKILL") => {
      signal(name);
      return ended();
    },
    start: async (more = {}, nodeFlags = []) => {
      if (isRunning()) throw new Error(`${spec.name} runs already`);
      const log = openSync(logFile, "a");
      const started = spawn(process.execPath, [...nodeFlags, await binOf(spec.app)], {
        cwd: spec.dir,
        env: { PATH: process.env["PATH"] ?? "/usr/bin:/bin", ...spec.env, ...more },
        stdio: ["ignore", log, log],
      });
      closeSync(log);
      child = started;
      exit = new Promise((resolve) => {
        started.once("exit", (code, by) => resolve({ code, signal: by }));
      });
      await waitUntil(async () => !isRunning() || (await spec.isReady()), {
        what: `${spec.name} to be ready`,
        timeoutMs: START_TIMEOUT_MS,
      });
    },
  };
};

const LINE_CHARS_MAX = 240;

/** The end of a program's log, for the message of a failure. */
export const logTail = (program: Program, lines = 6): string =>
  readFileSync(program.logFile, "utf8")
    .trimEnd()
    .split("\n")
    .slice(-lines)
    .map((line) => line.slice(0, LINE_CHARS_MAX))
    .join("\n");
