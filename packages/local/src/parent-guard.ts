/**
 * Makes a server end when we end, even by SIGKILL. A tiny shell holds the reading end of a pipe whose
 * writing end only we hold; when the pipe breaks, it stops the server's process or group.
 *
 * What must stay true: the guard is let go as soon as the server has ended by itself, so that its pid,
 * given to someone else by then, is never signalled.
 */
import { spawn } from "node:child_process";
import { toolEnv } from "./run-tool.ts";

export interface ParentGuard {
  release(): void;
}

// $1 is what kill(1) takes: a pid, or -pgid for a group. After the polite signal it waits, then kills.
const script = `
read -r word
[ "$word" = released ] && exit 0
kill -s "$2" -- "$1" 2>/dev/null
left=$3
while [ "$left" -gt 0 ] && kill -s 0 -- "$1" 2>/dev/null; do sleep 0.1; left=$((left - 1)); done
kill -s KILL -- "$1" 2>/dev/null
`;

export interface ParentGuardOptions {
  readonly pid: number;
  /** Signal the whole process group that `pid` leads. */
  readonly isGroup?: boolean;
  readonly signal: "INT" | "TERM";
  readonly killAfterMs: number;
}

export const guardAgainstOrphan = (options: ParentGuardOptions): ParentGuard => {
  const target = options.isGroup === true ? `-${options.pid}` : `${options.pid}`;
  const tenths = `${Math.ceil(options.killAfterMs / 100)}`;
  const shell = spawn("/bin/sh", ["-c", script, "coppice-guard", target, options.signal, tenths], {
    cwd: "/",
    env: toolEnv,
    stdio: ["pipe", "ignore", "ignore"],
    // Out of our group: a Ctrl+C in the terminal must not end the guard before the server.
    detached: true,
  });
  shell.unref();
  shell.once("error", () => undefined);
  shell.stdin.once("error", () => undefined);
  if ("unref" in shell.stdin && typeof shell.stdin.unref === "function") shell.stdin.unref();
  let isReleased = false;
  return {
    release: () => {
      if (isReleased) return;
      isReleased = true;
      shell.stdin.end("released\n");
    },
  };
};
