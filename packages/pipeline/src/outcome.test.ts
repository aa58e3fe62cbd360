import fc from "fast-check";
import { describe, expect, test } from "vitest";

import { type RetryPolicy, retrySchema } from "./ir.ts";
import { type AttemptEnd, backoffMs, decideOutcome, type OutcomeInput } from "./outcome.ts";

const policy = (changes: Partial<RetryPolicy> = {}): RetryPolicy => ({
  ...retrySchema.parse({ attemptsMax: 3, lostMax: 2 }),
  ...changes,
});

const decide = (outcome: AttemptEnd, changes: Partial<OutcomeInput> = {}) =>
  decideOutcome({
    step: { retry: policy(), finally: false },
    attempt: 1,
    failedCount: 0,
    lostCount: 0,
    isCancelled: false,
    outcome,
    random: 0.5,
    ...changes,
  });

const failed: AttemptEnd = { type: "failed", isRetryable: true };

describe("decideOutcome", () => {
  test("a success is a success", () => {
    expect(decide({ type: "succeeded" })).toEqual({
      state: "succeeded",
      attemptOutcome: "succeeded",
    });
  });

  test("failures are retried with growing delays until their budget is spent", () => {
    expect(decide(failed)).toEqual({ state: "retrying", attemptOutcome: "failed", delayMs: 1000 });
    expect(decide(failed, { failedCount: 1 })).toMatchObject({ state: "retrying", delayMs: 2000 });
    expect(decide(failed, { failedCount: 2 })).toEqual({
      state: "failed",
      attemptOutcome: "failed",
    });
  });

  test("a failure that can't change by trying again ends the step", () => {
    expect(decide({ type: "failed", isRetryable: false })).toMatchObject({ state: "failed" });
  });

  test("the user's wish for the delay goes before the policy, but not before its budget", () => {
    const wish: AttemptEnd = { ...failed, retryAfterMs: 7 };
    expect(decide(wish)).toMatchObject({ state: "retrying", delayMs: 7 });
    expect(decide(wish, { failedCount: 2 })).toMatchObject({ state: "failed" });
  });

  test("without a delay the step is ready at once", () => {
    expect(decide({ ...failed, retryAfterMs: 0 })).toEqual({
      state: "ready",
      attemptOutcome: "failed",
    });
  });

  test("losses have a budget of their own and end in quarantine", () => {
    const lost: AttemptEnd = { type: "lost" };
    expect(decide(lost, { failedCount: 2 })).toEqual({ state: "ready", attemptOutcome: "lost" });
    expect(decide(lost, { lostCount: 1 })).toEqual({
      state: "quarantined",
      attemptOutcome: "lost",
    });
    expect(decide(failed, { lostCount: 9 })).toMatchObject({ state: "retrying" });
  });

  test("giving an attempt back costs nothing, however often", () => {
    expect(decide({ type: "released" }, { attempt: 50, failedCount: 2, lostCount: 1 })).toEqual({
      state: "ready",
      attemptOutcome: "released",
    });
  });

  const ends: AttemptEnd[] = [
    { type: "succeeded" },
    failed,
    { type: "released" },
    { type: "cancelled" },
    { type: "lost" },
  ];
  test.each(ends)("in a cancelled run, $type becomes cancelled", (end) => {
    expect(decide(end, { isCancelled: true }).state).toBe("cancelled");
  });

  test("a cancelled run does not touch the attempts of finally steps", () => {
    const step = { retry: policy(), finally: true };
    expect(decide({ type: "succeeded" }, { isCancelled: true, step }).state).toBe("succeeded");
    expect(decide(failed, { isCancelled: true, step }).state).toBe("retrying");
  });
});

describe("backoffMs", () => {
  test("grows by the factor up to the limit", () => {
    const plain = policy({ jitterRatio: 0, backoffMs: 100, factor: 3, backoffMaxMs: 1000 });
    expect([1, 2, 3, 4, 100].map((number) => backoffMs(number, plain, 0.9))).toEqual([
      100, 300, 900, 1000, 1000,
    ]);
  });

  test("is spread by the jitter on both sides, at the limit too", () => {
    const spread = policy({ jitterRatio: 0.2, backoffMs: 1000, backoffMaxMs: 1000 });
    expect(backoffMs(9, spread, 0)).toBe(800);
    expect(backoffMs(9, spread, 0.5)).toBe(1000);
    expect(backoffMs(9, spread, 0.999_999)).toBe(1200);
  });

  test("is a whole number within the policy's bounds, whatever the policy", () => {
    const policies = fc.record({
      backoffMs: fc.integer({ min: 0, max: 86_400_000 }),
      factor: fc.double({ min: 1, max: 10, noNaN: true }),
      backoffMaxMs: fc.integer({ min: 0, max: 86_400_000 }),
      jitterRatio: fc.double({ min: 0, max: 1, noNaN: true }),
    });
    const random = fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true });
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 100 }), policies, random, (number, any, draw) => {
        const delayMs = backoffMs(number, any, draw);
        expect(Number.isInteger(delayMs)).toBe(true);
        expect(delayMs).toBeGreaterThanOrEqual(0);
        expect(delayMs).toBeLessThanOrEqual(Math.ceil(any.backoffMaxMs * (1 + any.jitterRatio)));
      }),
    );
  });
});
