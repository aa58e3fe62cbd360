/**
 * Between the workers' protocol and the engine's events: items in, answers out.
 */
import type { WorkAnswer, WorkItem } from "@coppice/contract";
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
 * A finish whose outcome holds text that can't be stored becomes a failure that says so: refusing it would
 * only cost the attempt its lease, again and again.
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

export const toAnswers = async (
  context: AssignmentContext,
  results: readonly PromiseSettledResult<EventResult>[],
): Promise<WorkAnswer[]> => {
  const begun: Begun[] = [];
  for (const result of results) {
    const attempt = result.status === "fulfilled" ? begunIn(result.value) : undefined;
    if (attempt !== undefined) begun.push(attempt);
  }
  const assignments = await buildAssignments(context, begun);
  const byAttempt = new Map(begun.map((attempt, index) => [attempt, assignments[index]]));
  return results.map((result): WorkAnswer => {
    if (result.status === "rejected") return problem(result.reason);
    const { value } = result;
    if (value.type === "refused") return problem(value.error);
    const attempt = begunIn(value);
    const assignment = attempt === undefined ? undefined : byAttempt.get(attempt);
    if (value.type === "superseded") return { type: "superseded" };
    if (value.type === "started" && assignment !== undefined)
      return { type: "started", assignment };
    return assignment === undefined ? { type: "accepted" } : { type: "accepted", next: assignment };
  });
};
