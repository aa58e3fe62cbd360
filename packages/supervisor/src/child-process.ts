/**
 * One child: the process, its pipes, and its end.
 *
 * What must stay true: the child leads its own process group and every end of it ends the group;
 * the watchdog's pipe is held by this process alone, so that the child ends with it; nothing that a
 * child says or does can block or throw here.
 */
import { type ChildProcess as NodeChild, spawn } from "node:child_process";
import { StringDecoder } from "node:string_decoder";
import type { Readable, Writable } from "node:stream";
import { fileURLToPath } from "node:url";

import { type FromChild, fromChildSchema, LineSplitter, type ToChild } from "./child-wire.ts";
import { CHILD_FD_IN, CHILD_FD_OUT, CHILD_FD_WATCHDOG } from "./child/fds.ts";

export interface ChildOptions {
  readonly cwd: string;
  readonly env: Readonly<Record<string, string>>;
  readonly memoryMb: number | undefined;
}

export interface ChildExit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  /** The end of what native code and the runtime wrote: where V8 says that its heap is full. */
  readonly lastWords: string;
  /** Set where the process could not be started at all. */
  readonly startError?: Error;
}

export interface ChildListener {
  onMessage(message: FromChild): void;
  /** Text that was written to the descriptors themselves. */
  onText(text: string): void;
}

const LAST_WORDS_CHARS = 8192;
/** A child that floods its log is read no faster than this: 20 MB/s. */
const READ_CHARS_PER_WINDOW = 4 * 1024 * 1024;
const WINDOW_MS = 200;

const isSource = import.meta.url.endsWith(".ts");
const entry = fileURLToPath(
  new URL(isSource ? "./child/main.ts" : "./child/main.js", import.meta.url),
);

export class ChildProcess {
  readonly exited: Promise<ChildExit>;
  readonly #process: NodeChild;
  readonly #wire: Writable;
  #listener: ChildListener | undefined;
  #lastWords = "";
  #isExited = false;
  /** What the child itself gave as its exit code, before it was killed. */
  #announcedCode: number | undefined;
  #charsInWindow = 0;
  #windowEndsAt = 0;

  constructor(options: ChildOptions) {
    this.#process = spawn(process.execPath, [...flagsOf(options.memoryMb), entry], {
      cwd: options.cwd,
      env: options.env,
      detached: true,
      stdio: ["ignore", "pipe", "pipe", "pipe", "pipe", "pipe"],
    });
    this.exited = this.#watchExit();
    // Typed for five at most; there are as many as `stdio` above has entries.
    const pipes = this.#process.stdio as readonly unknown[];
    this.#wire = pipes[CHILD_FD_IN] as Writable;
    // EPIPE: the child has gone, which its exit reports.
    this.#wire.on("error", () => undefined);
    (pipes[CHILD_FD_WATCHDOG] as Writable).on("error", () => undefined);
    this.#readText(pipes[1] as Readable);
    this.#readText(pipes[2] as Readable);
    this.#readWire(pipes[CHILD_FD_OUT] as Readable);
  }

  get pid(): number | undefined {
    return this.#process.pid;
  }

  get isExited(): boolean {
    return this.#isExited;
  }

  listen(listener: ChildListener | undefined): void {
    this.#listener = listener;
  }

  send(message: ToChild): void {
    if (!this.#isExited) this.#wire.write(`${JSON.stringify(message)}\n`);
  }

  /** Ends the whole group at once. */
  kill(): void {
    killGroup(this.#process.pid);
  }

  async #watchExit(): Promise<ChildExit> {
    return await new Promise<ChildExit>((resolve) => {
      const onEnd = (exit: Omit<ChildExit, "lastWords">): void => {
        if (this.#isExited) return;
        this.#isExited = true;
        // Its own children, if it left any.
        killGroup(this.#process.pid);
        // What it said last is in the pipes already: one full turn of the loop reads it.
        setImmediate(() =>
          setImmediate(() => {
            for (const stream of this.#process.stdio) stream?.destroy();
            const code = this.#announcedCode;
            const end = code === undefined ? exit : { ...exit, code, signal: null };
            resolve({ ...end, lastWords: this.#lastWords });
          }),
        );
      };
      this.#process.on("exit", (code, signal) => onEnd({ code, signal }));
      this.#process.on("error", (startError) => {
        if (this.#process.pid === undefined) onEnd({ code: null, signal: null, startError });
      });
    });
  }

  #readText(stream: Readable): void {
    const decoder = new StringDecoder("utf8");
    stream.on("error", () => undefined);
    stream.on("data", (chunk: Buffer) => {
      const text = decoder.write(chunk);
      this.#lastWords = (this.#lastWords + text).slice(-LAST_WORDS_CHARS);
      this.#throttle(stream, text.length);
      this.#listener?.onText(text);
    });
  }

  #readWire(stream: Readable): void {
    const lines = new LineSplitter(
      (line) => this.#onLine(line),
      () => this.kill(),
    );
    stream.setEncoding("utf8");
    stream.on("error", () => undefined);
    stream.on("data", (text: string) => {
      this.#throttle(stream, text.length);
      lines.push(text);
    });
  }

  /** Pauses a flooding stream until the window ends; its writer then waits in the kernel. */
  #throttle(stream: Readable, chars: number): void {
    const now = performance.now();
    if (now > this.#windowEndsAt) {
      this.#windowEndsAt = now + WINDOW_MS;
      this.#charsInWindow = 0;
    }
    this.#charsInWindow += chars;
    if (this.#charsInWindow < READ_CHARS_PER_WINDOW) return;
    stream.pause();
    setTimeout(() => stream.resume(), this.#windowEndsAt - now);
  }

  #onLine(line: string): void {
    const message = parseLine(line);
    // A child that does not speak the protocol was tampered with by its own code.
    if (message === undefined) this.kill();
    else if (message.type === "exit") this.#announcedCode = message.code;
    else this.#listener?.onMessage(message);
  }
}

const parseLine = (line: string): FromChild | undefined => {
  try {
    return fromChildSchema.parse(JSON.parse(line));
  } catch {
    return undefined;
  }
};

const flagsOf = (memoryMb: number | undefined): string[] => [
  "--enable-source-maps",
  ...(memoryMb === undefined ? [] : [`--max-old-space-size=${memoryMb}`]),
  ...(isSource ? ["--conditions=@coppice/source"] : []),
];

const killGroup = (pid: number | undefined): void => {
  if (pid === undefined) return;
  try {
    process.kill(-pid, "SIGKILL");
  } catch {
    // No such group: it has ended by itself.
  }
};
