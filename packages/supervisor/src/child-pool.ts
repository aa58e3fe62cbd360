/**
 * Children that wait for their next attempt.
 *
 * What must stay true: a child serves one project's bundle with one environment, one set of devices
 * and one memory limit, all fixed when it starts; it has one attempt at a time; it goes after a
 * crash, a cancellation, a leak, a thousand attempts or a minute without work; and there are never
 * more idle ones than the worker has slots.
 */
import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";

import { CoppiceError, type Logger } from "@coppice/core";

import type { UnpackedBundle } from "./bundle-cache.ts";
import { type ChildListener, ChildProcess } from "./child-process.ts";
import type { ChildFailure } from "./child-wire.ts";
import { deferred, withinMs } from "./deadline.ts";

const IDLE_MS = 60_000;
const START_MS = 60_000;
/** Leaks and growth are noticed earlier; a new child costs as much as a hundred short attempts. */
const ATTEMPTS_MAX = 1000;
const GROWTH_RATIO = 2;
const GROWTH_BYTES = 200 * 1024 * 1024;

export interface ChildSpec {
  /** All that is fixed at a child's start, as one text. */
  readonly key: string;
  readonly bundleDigest: string;
  readonly memoryMb: number | undefined;
  readonly env: (folders: {
    readonly home: string;
    readonly tmp: string;
  }) => Record<string, string>;
  readonly unpack: (target: string) => Promise<UnpackedBundle>;
}

/** What the code outside an attempt can fail with: the bundle itself. */
export class UnloadableError extends Error {
  readonly failure: ChildFailure;

  constructor(failure: ChildFailure) {
    super(failure.message);
    this.failure = failure;
  }
}

export interface PooledChild {
  readonly process: ChildProcess;
  readonly key: string;
  readonly dir: string;
  /** Attempts so far; the next one's serial number is one more. */
  attempts: number;
  /** Resident size after the first attempt: everything is loaded then. */
  baselineBytes: number | undefined;
  lastUsedAt: number;
}

export interface ChildPoolOptions {
  readonly dir: string;
  readonly idleMax: number;
  readonly externalsFrom: string | undefined;
  readonly logger: Logger;
}

export class ChildPool {
  readonly #options: ChildPoolOptions;
  readonly #all = new Set<PooledChild>();
  #idle: PooledChild[] = [];
  #started = 0;
  /** Between attempts a child has nothing to say; what it says tells of work that outlived one. */
  readonly #idleListener: ChildListener = {
    onText: () => undefined,
    onMessage: (message) => {
      if (message.type !== "breach") return;
      const fields = { code: "CPC_ISOLATION_BREACH", use: message.use };
      this.#options.logger.warn(fields, "a step's code used its context after its attempt's end");
    },
  };
  readonly #timer: NodeJS.Timeout;

  constructor(options: ChildPoolOptions) {
    this.#options = options;
    this.#timer = setInterval(() => this.#evictIdle(), IDLE_MS / 4).unref();
  }

  get counts(): { readonly idle: number; readonly all: number; readonly started: number } {
    return { idle: this.#idle.length, all: this.#all.size, started: this.#started };
  }

  /**
   * @param isFresh where the step wants a process of its own
   * @throws UnloadableError, CPC_CHILD_START_FAILED, what `unpack` throws
   */
  async acquire(
    spec: ChildSpec,
    listener: ChildListener,
    isFresh: boolean,
    signal: AbortSignal,
  ): Promise<PooledChild> {
    const warm = isFresh ? undefined : this.#takeIdle(spec.key);
    if (warm !== undefined) {
      warm.process.listen(listener);
      return warm;
    }
    return await this.#start(spec, listener, signal);
  }

  /** Gives a child back; `isSpent` where it must not be used again. */
  release(child: PooledChild, rssBytes: number | undefined, isSpent: boolean): void {
    child.process.listen(this.#idleListener);
    child.lastUsedAt = performance.now();
    child.baselineBytes ??= rssBytes;
    if (isSpent || child.process.isExited || child.attempts >= ATTEMPTS_MAX)
      return this.#end(child);
    if (rssBytes !== undefined && hasGrown(rssBytes, child.baselineBytes)) return this.#end(child);
    this.#idle.push(child);
    if (this.#idle.length > this.#options.idleMax) this.#evictOldest();
  }

  /** Ends every child at once and waits until they are gone, for two seconds at most. */
  async close(): Promise<void> {
    clearInterval(this.#timer);
    this.#idle = [];
    const children = [...this.#all];
    for (const { process } of children) process.kill();
    await withinMs(Promise.all(children.map(async ({ process }) => await process.exited)), 2000);
    await withinMs(rm(this.#options.dir, { recursive: true, force: true }), 2000);
  }

  /** The one that was used last: its memory is warm, and the others may grow old and go. */
  #takeIdle(key: string): PooledChild | undefined {
    const index = this.#idle.findLastIndex((child) => child.key === key && !child.process.isExited);
    return index === -1 ? undefined : this.#idle.splice(index, 1)[0];
  }

  async #start(
    spec: ChildSpec,
    listener: ChildListener,
    signal: AbortSignal,
  ): Promise<PooledChild> {
    this.#started += 1;
    const dir = join(this.#options.dir, String(this.#started));
    const folders = { home: join(dir, "home"), tmp: join(dir, "tmp") };
    await Promise.all(
      Object.values(folders).map(async (path) => await mkdir(path, { recursive: true })),
    );
    const projectDir = join(dir, "project");
    let child: PooledChild | undefined;
    try {
      const bundle = await spec.unpack(projectDir);
      signal.throwIfAborted();
      const { memoryMb } = spec;
      const process = new ChildProcess({ cwd: projectDir, env: spec.env(folders), memoryMb });
      const key = spec.key;
      child = { process, key, dir, attempts: 0, baselineBytes: undefined, lastUsedAt: 0 };
      this.#all.add(child);
      const ready = waitUntilReady(process, listener, signal);
      const { bundleDigest } = spec;
      const entry = join(projectDir, bundle.entry);
      const { externals } = bundle;
      const { externalsFrom } = this.#options;
      process.send({ type: "init", entry, projectDir, bundleDigest, externals, externalsFrom });
      await ready;
      process.listen(listener);
      return child;
    } catch (error) {
      if (child === undefined) await rm(dir, { recursive: true, force: true });
      else this.#end(child);
      throw error;
    }
  }

  #end(child: PooledChild): void {
    child.process.kill();
    void child.process.exited
      .then(async () => await rm(child.dir, { recursive: true, force: true }))
      .catch((error: unknown) => {
        this.#options.logger.warn(
          { err: error, dir: child.dir },
          "a child's folder is left behind",
        );
      })
      .finally(() => this.#all.delete(child));
  }

  #evictOldest(): void {
    const oldest = this.#idle.shift();
    if (oldest !== undefined) this.#end(oldest);
  }

  #evictIdle(): void {
    const before = performance.now() - IDLE_MS;
    const stale = this.#idle.filter((child) => child.lastUsedAt < before || child.process.isExited);
    this.#idle = this.#idle.filter((child) => !stale.includes(child));
    for (const child of stale) this.#end(child);
  }
}

const hasGrown = (rssBytes: number, baselineBytes: number | undefined): boolean =>
  baselineBytes !== undefined &&
  rssBytes > baselineBytes * GROWTH_RATIO &&
  rssBytes > baselineBytes + GROWTH_BYTES;

const waitUntilReady = async (
  process: ChildProcess,
  listener: ChildListener,
  signal: AbortSignal,
): Promise<void> => {
  const { promise, resolve, reject } = deferred<void>();
  const fail = (detail: string): void =>
    reject(new CoppiceError("CPC_CHILD_START_FAILED", { detail }));
  const timer = setTimeout(() => fail(`It was not ready within ${START_MS} ms.`), START_MS);
  const onAbort = (): void => fail("The attempt was stopped.");
  signal.addEventListener("abort", onAbort, { once: true });
  process.listen({
    onText: (text) => listener.onText(text),
    onMessage: (message) => {
      if (message.type === "ready") resolve();
      else if (message.type === "unloadable") reject(new UnloadableError(message.failure));
      else listener.onMessage(message);
    },
  });
  void process.exited.then(({ code, signal: by, lastWords, startError }) =>
    fail(startError?.message ?? `It ended with ${by ?? `code ${code}`}. ${lastWords.slice(-2000)}`),
  );
  try {
    await promise;
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", onAbort);
  }
};
