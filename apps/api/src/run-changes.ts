/**
 * Who waits for news of which run. One listener on the engine, however many streams there are; news
 * that comes while nobody waits is not lost, because every waiter looks again before it waits.
 */
import type { RunId } from "@coppice/core";
import type { Engine } from "@coppice/engine";

export interface RunChanges {
  /** Watches from now on, so that nothing falls between a look and a wait. */
  watch(runId: RunId): RunWatch;
  close(): void;
}

export interface RunWatch {
  /** Resolves when the run changed since the last `wait` began, at the latest after `ms`. */
  wait(ms: number, signal: AbortSignal): Promise<void>;
  close(): void;
}

interface Waiter {
  isNews: boolean;
  wake: (() => void) | undefined;
}

export const createRunChanges = (engine: Pick<Engine, "onRunChanged">): RunChanges => {
  const waiters = new Map<string, Set<Waiter>>();
  const tell = (group: ReadonlySet<Waiter> | undefined): void => {
    for (const waiter of group ?? []) {
      waiter.isNews = true;
      waiter.wake?.();
    }
  };
  const stop = engine.onRunChanged((runId: string) => {
    // After a lost connection nobody knows which: all of them look.
    if (runId === "*") for (const group of waiters.values()) tell(group);
    else tell(waiters.get(runId));
  });
  return {
    watch: (runId) => {
      const waiter: Waiter = { isNews: false, wake: undefined };
      const group = waiters.get(runId) ?? new Set();
      group.add(waiter);
      waiters.set(runId, group);
      return {
        wait: async (ms, signal) => {
          if (!waiter.isNews && !signal.aborted) {
            await new Promise<void>((resolve) => {
              const done = (): void => {
                clearTimeout(timer);
                signal.removeEventListener("abort", done);
                waiter.wake = undefined;
                resolve();
              };
              const timer = setTimeout(done, ms);
              signal.addEventListener("abort", done);
              waiter.wake = done;
            });
          }
          waiter.isNews = false;
        },
        close: () => {
          group.delete(waiter);
          if (group.size === 0 && waiters.get(runId) === group) waiters.delete(runId);
        },
      };
    },
    close: stop,
  };
};
