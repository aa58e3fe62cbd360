/**
 * The child's side of the wire.
 *
 * Words go out by a blocking write: a step that floods its log is slowed by the pipe instead of
 * filling its own memory, and a word said before a crash has left the process. Text of the log is
 * gathered for a few milliseconds under a flood, and always leaves before any other word.
 */
import { writeSync } from "node:fs";
import { Socket } from "node:net";

import type { FromChild, ToChild } from "../child-wire.ts";
import { CHILD_FD_IN, CHILD_FD_OUT } from "./fds.ts";

const LOG_PART_CHARS_MAX = 16 * 1024;
const LOG_GATHER_MS = 5;

/** Where a blocking write may be interrupted or, on a pipe that became non-blocking, refused. */
const writeAll = (text: string): void => {
  const bytes = Buffer.from(text);
  let at = 0;
  while (at < bytes.length) {
    try {
      at += writeSync(CHILD_FD_OUT, bytes, at);
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code;
      // The supervisor is gone: the watchdog ends this process, there is nobody to tell.
      if (code !== "EAGAIN" && code !== "EINTR") return;
    }
  }
};

export class ChildWire {
  #pendingLog = "";
  #lastLogAt = 0;
  #flushTimer: NodeJS.Immediate | undefined;

  send(message: FromChild): void {
    this.flushLog();
    writeAll(`${JSON.stringify(message)}\n`);
  }

  /** Text of stdout, stderr and `ctx.log`, in the order in which it was written. */
  log(text: string): void {
    this.#pendingLog += text;
    if (this.#pendingLog.length >= LOG_PART_CHARS_MAX) {
      this.flushLog();
    } else if (performance.now() - this.#lastLogAt > LOG_GATHER_MS) {
      this.flushLog();
    } else {
      this.#flushTimer ??= setImmediate(() => this.flushLog());
    }
  }

  flushLog(): void {
    if (this.#flushTimer !== undefined) clearImmediate(this.#flushTimer);
    this.#flushTimer = undefined;
    const text = this.#pendingLog;
    if (text === "") return;
    this.#pendingLog = "";
    this.#lastLogAt = performance.now();
    for (let at = 0; at < text.length; at += LOG_PART_CHARS_MAX) {
      const part = text.slice(at, at + LOG_PART_CHARS_MAX);
      writeAll(`${JSON.stringify({ type: "log", text: part })}\n`);
    }
  }

  listen(onMessage: (message: ToChild) => void): void {
    const socket = new Socket({ fd: CHILD_FD_IN, readable: true, writable: false });
    let rest = "";
    socket.setEncoding("utf8");
    socket.on("data", (chunk: string) => {
      const lines = (rest + chunk).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) onMessage(JSON.parse(line) as ToChild);
    });
    socket.on("error", () => undefined);
  }
}
