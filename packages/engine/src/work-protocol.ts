/**
 * Between the workers' protocol and the engine's events: items in, answers out.
 */
import type { Assignment, WorkAnswer, WorkItem } from "@coppice/contract";
import {
  type AttemptRef,
  CoppiceError,
  isCoppiceError,
  type LeaseToken,
  type RunId,
  toErrorRecord,
  type WorkerId,
} from "@coppice/core";

import { type AssignmentContext, buildAssignments } from "./assignments.ts";
import type { Begun, EngineEvent, EventResult } from "./events.ts";

export const toEvent = (workerId: WorkerId, item: WorkItem): EngineEvent => {
  const ref: AttemptRef = {
    runId: item.runId as RunId,
    step: item.step,
    item: item.item,
    attempt: item.attempt,
  };
  const lease = item.lease as LeaseToken;
  switch (item.type) {
    case "start":
      return { type: "start", ref, lease, workerId };
    case "noSlot":
      return { type: "noSlot", ref, ring: item.ring };
    case "finish":
      return {
        type: "finish",
        ref,
        lease,
        workerId,
        outcome: item.outcome,
        ...(item.usage === undefined ? {} : { usage: item.usage }),
        ...(item.offer === undefined
          ? {}
          : { offer: { lease: item.offer.lease as LeaseToken, gpus: item.offer.gpus } }),
      };
  }
};

/**
 * A finish whose outcome holds text that can't be stored becomes a failure that says so: refusing
 * it would only cost the attempt its lease, again and again.
 */
export const withStorableOutcome = (item: WorkItem, error: unknown): WorkItem | undefined => {
  if (item.type !== "finish" || !isCoppiceError(error) || error.code !== "CPC_INVALID_INPUT") {
    return undefined;
  }
  const record = toErrorRecord(new CoppiceError("CPC_OUTPUT_INVALID", { detail: error.message }));
  const { outcome } = item;
  const message = outcome.type === "failed" ? storable(outcome.error.message) : record.message;
  return {
    ...item,
    outcome: { type: "failed", isRetryable: false, error: { code: record.code, message } },
  };
};

/** Encoding replaces lone halves of surrogate pairs. */
const storable = (text: string): string => Buffer.from(text.replaceAll("\0", "\uFFFD")).toString();

const begunIn = (result: EventResult): Begun | undefined => {
  if (result.type === "started") return result.begun;
  return result.type === "accepted" ? result.next : undefined;
};

const problem = (error: unknown): WorkAnswer =>
  isCoppiceError(error)
    ? { type: "problem", code: error.code, message: error.message, isRetryable: error.isRetryable }
    : {
        type: "problem",
        code: "CPC_INTERNAL",
        message: "Something unexpected happened.",
        isRetryable: true,
      };

const NO_ASSIGNMENT = new CoppiceError("CPC_PIPELINE_INVALID", {
  detail: "What the attempt needs could not be put together.",
});

/**
 * One attempt that nothing can be put together for must not cost the others of its exchange their
 * answers.
 */
const assignmentsOf = async (
  context: AssignmentContext,
  begun: readonly Begun[],
): Promise<ReadonlyMap<Begun, Assignment | Error>> => {
  try {
    const assignments = await buildAssignments(context, begun);
    return new Map(
      begun.flatMap((attempt, index) => {
        const assignment = assignments[index];
        return assignment === undefined ? [] : [[attempt, assignment] as const];
      }),
    );
  } catch (error) {
    if (begun.length === 0 || isPassing(error)) throw error;
    if (begun.length === 1 && begun[0] !== undefined) {
      return new Map([[begun[0], error instanceof Error ? error : new Error(String(error))]]);
    }
    const found = new Map<Begun, Assignment | Error>();
    for (const attempt of begun) {
      for (const entry of await assignmentsOf(context, [attempt])) found.set(...entry);
    }
    return found;
  }
};

/** The database's errors pass; those of what is stored come again every time. */
const isPassing = (error: unknown): boolean =>
  isCoppiceError(error) ? error.isRetryable : error instanceof Error && "severity" in error;

export const toAnswers = async (
  context: AssignmentContext,
  results: readonly PromiseSettledResult<EventResult>[],
): Promise<WorkAnswer[]> => {
  const begun: Begun[] = [];
  for (const result of results) {
    const attempt = result.status === "fulfilled" ? begunIn(result.value) : undefined;
    if (attempt !== undefined) begun.push(attempt);
  }
  const byAttempt = await assignmentsOf(context, begun);
  return results.map((result): WorkAnswer => {
    if (result.status === "rejected") return problem(result.reason);
    const { value } = result;
    if (value.type === "refused") return problem(value.error);
    const attempt = begunIn(value);
    const assignment = attempt === undefined ? undefined : byAttempt.get(attempt);
    if (assignment instanceof Error) {
      // A finish is accepted whatever becomes of what it started: nobody beats for that, so it is
      // lost.
      return value.type === "started" ? problem(NO_ASSIGNMENT) : { type: "accepted" };
    }
    if (value.type === "superseded") return { type: "superseded" };
    if (value.type === "started" && assignment !== undefined)
      return { type: "started", assignment };
    return assignment === undefined ? { type: "accepted" } : { type: "accepted", next: assignment };
  });
};
