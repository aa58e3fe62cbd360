/**
 * How often one address may come with a credential that nobody knows, before such credentials of
 * this address are not even looked up any more.
 *
 * What must stay true: it spares the database, it does not guard secrets of 256 bits; whoever came
 * with a good credential before is heard all the same, so that a flood from behind a proxy locks
 * nobody out who is at work.
 */
export const FAILURES_PER_MINUTE = 600;

const WINDOW_MS = 60_000;
const ADDRESSES_MAX = 10_000;

export interface FailureLimit {
  isOver(address: string): boolean;
  count(address: string): void;
}

export const createFailureLimit = (max = FAILURES_PER_MINUTE): FailureLimit => {
  const failures = new Map<string, number>();
  let windowEndsAtMs = 0;
  const turn = (): void => {
    if (performance.now() < windowEndsAtMs) return;
    failures.clear();
    windowEndsAtMs = performance.now() + WINDOW_MS;
  };
  return {
    isOver: (address) => {
      turn();
      return (failures.get(address) ?? 0) >= max;
    },
    count: (address) => {
      turn();
      if (failures.size < ADDRESSES_MAX || failures.has(address)) {
        failures.set(address, (failures.get(address) ?? 0) + 1);
      }
    },
  };
};
