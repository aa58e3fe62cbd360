/**
 * The seeded `Math.random` of a child.
 *
 * It stands before the bundle is loaded, so that no library can keep the original, and is seeded
 * anew for each attempt: the first attempt of a fresh child, the thirtieth of a reused one and one
 * after a crash draw the same numbers.
 */
import { type Rng, seededRng } from "@coppice/core";

let current: Rng = seededRng("coppice");

export const installSeededRandom = (seed: string): void => {
  current = seededRng(seed);
  Math.random = () => current.next();
};

export const reseedRandom = (seed: string): void => {
  current = seededRng(seed);
};
