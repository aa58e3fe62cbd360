/**
 * Time as an argument. Pure rooms never read a clock; edges pass `systemClock`-like objects that
 * they build themselves, tests pass `fixedClock`.
 */
export interface Clock {
  /** Milliseconds since the Unix epoch. */
  nowMs(): number;
}

export interface FixedClock extends Clock {
  advance(ms: number): void;
}

export const fixedClock = (startMs: number): FixedClock => {
  let now = startMs;
  return {
    nowMs: () => now,
    advance: (ms) => {
      now += ms;
    },
  };
};
