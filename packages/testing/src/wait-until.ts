/**
 * Waiting for a condition with a deadline: the only place in the tests where time passes by a
 * timer.
 */
import { setTimeout as pause } from "node:timers/promises";

export interface WaitOptions {
  /** What is awaited, for the message when it does not come: "the run to succeed". */
  readonly what: string;
  readonly timeoutMs?: number;
  readonly everyMs?: number;
}

/**
 * Asks until the answer is truthy and returns it. An error thrown by the condition means "not yet";
 * the last one is shown when the time is over.
 */
export const waitUntil = async <T>(
  condition: () => T | Promise<T>,
  options: WaitOptions,
): Promise<NonNullable<T>> => {
  const { what, timeoutMs = 10_000, everyMs = 20 } = options;
  const deadline = performance.now() + timeoutMs;
  let lastError: unknown;
  for (;;) {
    try {
      const answer = await condition();
      if (answer) return answer;
      lastError = undefined;
    } catch (error) {
      lastError = error;
    }
    if (performance.now() >= deadline) break;
    await pause(everyMs);
  }
  const reason = lastError instanceof Error ? `: ${lastError.message}` : ".";
  throw new Error(`Waited ${timeoutMs} ms in vain for ${what}${reason}`, { cause: lastError });
};
