/**
 * The worker's side: one listener over all classes that the worker serves, which share its slots.
 * It starts and goes on without the server: what can't be reached is tried again until `close`.
 */
import { CoppiceError, type Logger, silentLogger } from "@coppice/core";
import { type DoorbellAddress, MAX_CLASSES } from "./address.ts";
import type { Backend } from "./backend.ts";
import { ClassListener, type OnBell } from "./class-listener.ts";
import { openBackend } from "./open-backend.ts";
import type { SlotGate } from "./slots.ts";

const REMOVE_DEADLINE_MS = 2000;

export interface Listener {
  /** Starts and stops listening so that exactly these classes are served. */
  setClasses(classKeys: readonly string[]): Promise<void>;
  /** Takes no further bell, waits for those in hand, ends the connections; by its deadline. */
  close(deadlineMs: number): Promise<void>;
}

export interface ListenOptions {
  readonly slots: SlotGate;
  readonly onBell: OnBell;
  readonly classKeys?: readonly string[];
  readonly logger?: Logger;
}

class BullListener implements Listener {
  readonly #backend: Backend;
  readonly #options: ListenOptions;
  readonly #logger: Logger;
  readonly #classes = new Map<string, ClassListener>();
  #isClosed = false;

  constructor(backend: Backend, options: ListenOptions, logger: Logger) {
    this.#backend = backend;
    this.#options = options;
    this.#logger = logger;
  }

  async setClasses(classKeys: readonly string[]): Promise<void> {
    if (this.#isClosed) return;
    const wanted = new Set(classKeys);
    if (wanted.size > MAX_CLASSES) {
      throw new CoppiceError("CPC_TOO_MANY_CLASSES", {
        detail: `expected at most ${MAX_CLASSES} classes. Received: ${wanted.size}`,
      });
    }
    const leaving = [...this.#classes].filter(([classKey]) => !wanted.has(classKey));
    for (const [classKey] of leaving) this.#classes.delete(classKey);
    for (const classKey of wanted) {
      if (this.#classes.has(classKey)) continue;
      const { onBell, slots } = this.#options;
      this.#classes.set(
        classKey,
        new ClassListener({
          backend: this.#backend,
          classKey,
          slots,
          onBell,
          logger: this.#logger,
        }),
      );
    }
    await Promise.all(leaving.map(async ([, listener]) => listener.stop(REMOVE_DEADLINE_MS)));
  }

  async close(deadlineMs: number): Promise<void> {
    this.#isClosed = true;
    const endsAtMs = performance.now() + deadlineMs;
    const listeners = [...this.#classes.values()];
    this.#classes.clear();
    await Promise.all(listeners.map(async (listener) => listener.stop(deadlineMs)));
    await this.#backend.close(Math.max(0, endsAtMs - performance.now()));
  }
}

export const listen = async (
  address: DoorbellAddress,
  options: ListenOptions,
): Promise<Listener> => {
  const logger = options.logger ?? silentLogger;
  const backend = openBackend(address, { side: "listener", logger });
  await backend.check().catch((error: unknown) => {
    logger.warn({ err: error }, "the doorbell can't be reached yet; trying on");
  });
  const listener = new BullListener(backend, options, logger);
  await listener.setClasses(options.classKeys ?? []);
  return listener;
};
