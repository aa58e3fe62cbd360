/**
 * A worker inside the process: it registers, listens for bells, starts and finishes like a real
 * one, but runs a function instead of a child. For tests of the engine and for benchmarks of it.
 *
 * What must stay true: it speaks only the workers' protocol; one promise chain per attempt and one
 * timer for the whole worker; a request that fails by a lost connection is sent again, word for
 * word.
 */
import { randomUUID } from "node:crypto";
import { setTimeout as pause } from "node:timers/promises";
import type { Assignment, Outcome, StreamItem, WorkAnswer, WorkItem } from "@coppice/contract";
import {
  attemptKey,
  type AttemptRef,
  type JsonValue,
  type RunId,
  type TokenId,
  type WorkerId,
} from "@coppice/core";
import type { Engine } from "@coppice/engine";
import { createSlots, type Bell, type DoorbellAddress, listen, type Slot } from "@coppice/queue";

export interface InlineAttempt {
  /** Fires when the server says that the attempt was cancelled or superseded. */
  readonly signal: AbortSignal;
  readonly workerId: WorkerId;
}

/**
 * What the attempt comes to; undefined: nothing is ever told, as if the worker had died over it.
 */
export type Execute = (
  assignment: Assignment,
  attempt: InlineAttempt,
) => Outcome | undefined | Promise<Outcome | undefined>;

export interface InlineWorkerOptions {
  readonly engine: Pick<Engine, "work" | "stream" | "registerWorker">;
  readonly doorbell: DoorbellAddress;
  /** A token of scope `worker`. */
  readonly tokenId: TokenId;
  readonly slots: number;
  readonly execute: Execute;
  readonly name?: string;
  readonly labels?: Readonly<Record<string, string>>;
  /** @defaultValue 1000 */
  readonly heartbeatMs?: number;
  /** Whether a finish offers its slot for the next attempt. @defaultValue true */
  readonly isOffering?: boolean;
  /** Sees every item as it is sent and what it was answered. */
  readonly onAnswer?: (item: WorkItem, answer: WorkAnswer) => void;
}

export interface InlineWorker extends AsyncDisposable {
  readonly workerId: WorkerId;
  /** Attempts in hand. */
  running(): number;
  /** Heartbeats for all attempts now, instead of at the timer's next turn. */
  beat(): Promise<void>;
  /**
   * From here on it is silent, as if its machine were gone; attempts in hand are never finished.
   */
  vanish(): Promise<void>;
  /** Takes nothing new and waits for what is in hand. */
  stop(): Promise<void>;
}

interface InHand {
  readonly assignment: Assignment;
  readonly abort: AbortController;
}

const HEARTBEAT_MS_DEFAULT = 1000;
const RESEND_MS = 50;
const CLOSE_DEADLINE_MS = 2000;

const refOf = ({ runId, step, item, attempt, lease }: Assignment) => ({
  runId,
  step,
  item,
  attempt,
  lease,
});

const keyOf = (ref: { runId: string } & Omit<AttemptRef, "runId">): string =>
  attemptKey({ ...ref, runId: ref.runId as RunId });

/** An outcome without anything to tell. */
export const succeeded = (output: JsonValue): Outcome => ({
  type: "succeeded",
  output: output as Extract<Outcome, { type: "succeeded" }>["output"],
  artifacts: [],
});

export const failed = (message: string, isRetryable = true): Outcome => ({
  type: "failed",
  error: { code: "CPC_STEP_FAILED", message },
  isRetryable,
});

export const startInlineWorker = async (options: InlineWorkerOptions): Promise<InlineWorker> => {
  const { engine, execute, onAnswer, isOffering = true } = options;
  const inHand = new Map<string, InHand>();
  let isGone = false;
  let isDraining = false;
  let idle: (() => void)[] = [];

  const { workerId, classes } = await engine.registerWorker(options.tokenId, {
    protocol: 1,
    name: options.name ?? "inline",
    host: "localhost",
    version: "0.0.0",
    labels: { ...options.labels },
    slots: options.slots,
    devices: [],
    clockMs: Date.now(),
  });

  /**
   * Until it is answered: the same item, so that being answered twice is being answered the same.
   */
  const send = async (item: WorkItem): Promise<WorkAnswer | undefined> => {
    for (;;) {
      if (isGone) return undefined;
      const [answer] = await engine.work(workerId, [item]);
      if (isGone || answer === undefined) return undefined;
      onAnswer?.(item, answer);
      if (answer.type !== "problem" || !answer.isRetryable) return answer;
      await pause(RESEND_MS);
    }
  };

  const runOne = async (assignment: Assignment): Promise<Assignment | undefined> => {
    const key = keyOf(assignment);
    const abort = new AbortController();
    inHand.set(key, { assignment, abort });
    try {
      const outcome = await execute(assignment, { signal: abort.signal, workerId });
      if (outcome === undefined || isGone) return undefined;
      const offer = isOffering && !isDraining ? { lease: randomUUID(), gpus: 0 } : undefined;
      const answer = await send({
        type: "finish",
        ...refOf(assignment),
        outcome,
        ...(offer === undefined ? {} : { offer }),
      });
      return answer?.type === "accepted" ? answer.next : undefined;
    } finally {
      inHand.delete(key);
    }
  };

  const runAll = async (first: Assignment, slot: Slot): Promise<void> => {
    let next: Assignment | undefined = first;
    try {
      while (next !== undefined) next = await runOne(next);
    } finally {
      slot.release();
      if (inHand.size === 0) {
        for (const wake of idle) wake();
        idle = [];
      }
    }
  };

  const listener = await listen(options.doorbell, {
    slots: createSlots(options.slots),
    classKeys: classes,
    onBell: async (bell: Bell, slot) => {
      const { runId, step, item, attempt, ring } = bell;
      const lease = randomUUID();
      const answer = await send({ type: "start", runId, step, item, attempt, lease, ring });
      if (answer?.type !== "started") {
        slot.release();
        return "refused";
      }
      // The chain ends by itself; an error in `execute` is the test's own and must be seen.
      void runAll(answer.assignment, slot);
      return "started";
    },
  });

  let served = classes.join("\n");
  const beat = async (): Promise<void> => {
    if (isGone) return;
    const beating = [...inHand.values()];
    const items: StreamItem[] = [
      {
        type: "worker",
        freeSlots: Math.max(0, options.slots - beating.length),
        freeGpus: 0,
        isDraining,
      },
      ...beating.map(({ assignment }) => ({ type: "heartbeat" as const, ...refOf(assignment) })),
    ];
    const [self, ...answers] = await engine.stream(workerId, items);
    for (const [index, answer] of answers.entries()) {
      if (answer.type === "cancelled" || answer.type === "superseded") {
        beating[index]?.abort.abort(answer.type);
      }
    }
    if (self?.type === "classes" && self.classes.join("\n") !== served && !isDraining) {
      served = self.classes.join("\n");
      await listener.setClasses(self.classes);
    }
  };
  let isBeating = false;
  const timer = setInterval(() => {
    if (isBeating) return;
    isBeating = true;
    // The database may be away; the next beat tries again.
    beat()
      .catch(() => undefined)
      .finally(() => {
        isBeating = false;
      });
  }, options.heartbeatMs ?? HEARTBEAT_MS_DEFAULT);
  timer.unref();

  const vanish = async (): Promise<void> => {
    isGone = true;
    clearInterval(timer);
    await listener.close(CLOSE_DEADLINE_MS);
  };
  const stop = async (): Promise<void> => {
    if (isGone) return;
    isDraining = true;
    await beat().catch(() => undefined);
    await listener.close(CLOSE_DEADLINE_MS);
    if (inHand.size > 0) await new Promise<void>((resolve) => idle.push(resolve));
    clearInterval(timer);
    isGone = true;
  };
  return {
    workerId,
    running: () => inHand.size,
    beat,
    vanish,
    stop,
    [Symbol.asyncDispose]: vanish,
  };
};
