/**
 * A bell and its form as a BullMQ job. What must stay true: nothing of the user's ever travels
 * here, and a job that this version can't read is dropped, never guessed at; the database knows
 * what is queued and rings again.
 */
import { attemptKey, type AttemptRef, parseId } from "@coppice/core";
import type { JobsOptions } from "bullmq";
import { z } from "zod";

/** "Attempt N of this step run may start." */
export interface Bell extends AttemptRef {
  readonly classKey: string;
  /** How often this attempt was rung before; counted in PostgreSQL. */
  readonly ring: number;
  /** Higher first, -100..100. */
  readonly priority: number;
}

/** What the worker made of it. Either way the bell is done: the truth is in PostgreSQL. */
export type BellAnswer = "started" | "refused" | "failed";

const count = z.number().int().nonnegative();
const Payload = z.object({
  v: z.literal(1),
  s: z.string(),
  i: count,
  m: count,
  a: z.number().int().positive(),
  r: count,
});
export type BellPayload = z.infer<typeof Payload>;

export const BELL_JOB_NAME = "bell";
const MAX_PRIORITY = 100;

/**
 * BullMQ: 1 is first, larger is later, and 0 would overtake all others. So every bell has at
 * least 1.
 */
const toBullPriority = (priority: number): number =>
  MAX_PRIORITY + 1 - Math.max(-MAX_PRIORITY, Math.min(MAX_PRIORITY, Math.round(priority)));

export const bellJobId = (bell: Bell): string => `${attemptKey(bell)}-r${bell.ring}`;

export interface BellJob {
  readonly name: string;
  readonly data: BellPayload;
  readonly opts: JobsOptions;
}

/** @param keep how long BullMQ shows a finished bell; differs between the backends */
export const toBellJob = (bell: Bell, keep: JobsOptions): BellJob => ({
  name: BELL_JOB_NAME,
  data: { v: 1, s: bell.runId, i: bell.step, m: bell.item, a: bell.attempt, r: bell.ring },
  opts: { ...keep, jobId: bellJobId(bell), priority: toBullPriority(bell.priority) },
});

/** @returns undefined where the data is not a bell of this version */
export const parseBell = (
  classKey: string,
  data: unknown,
  bullPriority: number | undefined,
): Bell | undefined => {
  const parsed = Payload.safeParse(data);
  if (!parsed.success) return undefined;
  const { s, i, m, a, r } = parsed.data;
  const runId = parseId("run", s);
  if (runId === undefined) return undefined;
  const priority = bullPriority === undefined ? 0 : MAX_PRIORITY + 1 - bullPriority;
  return { classKey, runId, step: i, item: m, attempt: a, ring: r, priority };
};
