/** Bounded waiting: BullMQ's calls may wait for ever when the server is away, ours may not. */
import { setTimeout as delay } from "node:timers/promises";

/** The promise's value, or undefined once the time is over; late failures are dropped. */
export const withinMs = async <T>(promise: Promise<T>, ms: number): Promise<T | undefined> => {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<undefined>((resolve) => {
    timer = setTimeout(() => resolve(undefined), ms);
  });
  promise.catch(() => undefined);
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
};

export const DEADLINE: unique symbol = Symbol("deadline");

/** Like `withinMs`, but tells "too late" from "resolved to undefined". */
export const orDeadline = async <T>(
  promise: Promise<T>,
  ms: number,
): Promise<T | typeof DEADLINE> => {
  const settled = await withinMs(
    promise.then((value) => ({ value })),
    ms,
  );
  return settled === undefined ? DEADLINE : settled.value;
};

/** Sleeps, or returns early when the signal fires. */
export const sleep = async (ms: number, signal: AbortSignal): Promise<void> => {
  await delay(ms, undefined, { signal }).catch(() => undefined);
};
