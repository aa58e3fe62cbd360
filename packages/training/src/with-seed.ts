/**
 * Randomness with a seed that is a parameter. The engine draws initial weights, dropout masks and
 * shuffles from `Math.random`; a worker seeds that per attempt, from the step run. Where a result
 * must be the same in *every* run, its seed must be the user's own: hence this.
 *
 * What must stay true: one at a time, for there is only one `Math.random`; the one from before is
 * back afterwards, also when the work throws.
 */
import { CoppiceError, seededRng } from "@coppice/core";

let isSeeded = false;

/** @throws CPC_INVALID_INPUT where another call is still at work in this process */
export const withSeed = async <T>(seed: string | number, work: () => Promise<T>): Promise<T> => {
  if (isSeeded) {
    throw new CoppiceError("CPC_INVALID_INPUT", {
      detail: "expected one seeded piece of work at a time. Received: a second one meanwhile",
    });
  }
  const before = Math.random;
  const rng = seededRng(seed);
  isSeeded = true;
  Math.random = () => rng.next();
  try {
    return await work();
  } finally {
    Math.random = before;
    isSeeded = false;
  }
};
