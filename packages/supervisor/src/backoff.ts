/**
 * Waiting between tries: the first try again comes at once, because a kept-alive connection that
 * the server closed is no outage; then doubling from 50 ms to 5 s, spread by half, so that a fleet
 * does not come back in step.
 */
import { setTimeout as sleep } from "node:timers/promises";

const BACKOFF_MIN_MS = 50;
const BACKOFF_MAX_MS = 5000;

/** @param failures how many tries failed in a row, from 1 */
export const waitBeforeRetry = async (failures: number, signal?: AbortSignal): Promise<void> => {
  if (failures <= 1) return;
  const fullMs = Math.min(BACKOFF_MAX_MS, BACKOFF_MIN_MS * 2 ** Math.min(failures - 2, 10));
  await sleep(
    fullMs * (0.5 + Math.random() / 2),
    undefined,
    signal === undefined ? {} : { signal },
  );
};
