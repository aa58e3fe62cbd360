/**
 * Polling for what the outside gives no event for: a file that a server writes, a process of someone
 * else that must go. Always with a deadline.
 */
import { setTimeout as pause } from "node:timers/promises";

/** Asks until the answer is not undefined; undefined when the time is over. */
export const waitFor = async <T>(
  ask: () => Promise<T | undefined> | T | undefined,
  timeoutMs: number,
  everyMs = 15,
): Promise<T | undefined> => {
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    const answer = await ask();
    if (answer !== undefined) return answer;
    if (performance.now() >= deadline) return undefined;
    await pause(everyMs);
  }
};

export const isProcessAlive = (pid: number): boolean => {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error instanceof Error && "code" in error && error.code === "EPERM";
  }
};

export const waitForProcessEnd = async (pid: number, timeoutMs: number): Promise<boolean> =>
  (await waitFor(() => (isProcessAlive(pid) ? undefined : true), timeoutMs)) ?? false;
