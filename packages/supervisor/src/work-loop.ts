/**
 * From bells to attempts to finishes, and from an accepted finish to the next attempt.
 *
 * What must stay true: an attempt runs only under a lease that the server granted, and its lease is
 * kept from the first moment on, also while it waits for more slots than its bell came with; a slot
 * is held from the bell until the finish is answered; an outcome that the server has not answered within
 * half a second lies on disk before anything else happens to it.
 */
import { randomUUID } from "node:crypto";

import type { Assignment, Outcome, WorkAnswer, WorkItem } from "@coppice/contract";
import { attemptKey, isCoppiceError, type Metrics, type RunId } from "@coppice/core";

import type { AttemptRooms } from "./attempt.ts";
import { ActiveAttempt, type AttemptResult } from "./attempt.ts";
import { waitBeforeRetry } from "./backoff.ts";
import type { Bell } from "./bell-source.ts";
import type { FinishItem, Outbox } from "./outbox.ts";
import type { SlotGate, SlotGrant } from "./slots.ts";

const BELL_WAIT_MS = 1000;
const SPOOL_AFTER_MS = 500;

export interface WorkLoopOptions {
  readonly rooms: AttemptRooms;
  readonly gate: SlotGate;
  readonly outbox: Outbox;
  readonly metrics: Metrics;
}

export class WorkLoop {
  readonly #options: WorkLoopOptions;
  /** Attempts whose finish is not answered yet: each of them needs heartbeats. */
  readonly #live = new Map<string, ActiveAttempt>();
  readonly #starting = new Set<string>();
  readonly #chains = new Set<Promise<void>>();
  #isDraining = false;
  #stopping: "drain" | "kill" | undefined;

  constructor(options: WorkLoopOptions) {
    this.#options = options;
  }

  get live(): readonly ActiveAttempt[] {
    return [...this.#live.values()];
  }

  async onBell(
    bell: Bell,
    inHand: SlotGrant | undefined,
  ): Promise<"started" | "refused" | "failed"> {
    const key = attemptKey(bell);
    // A doubled bell: the attempt is here already.
    if (this.#isDraining || this.#live.has(key) || this.#starting.has(key)) {
      inHand?.release();
      return "refused";
    }
    this.#starting.add(key);
    try {
      const grant = inHand ?? (await this.#waitForSlot(bell));
      if (grant === undefined) return "refused";
      return await this.#start(bell, grant);
    } finally {
      this.#starting.delete(key);
    }
  }

  /** Offers no slot and takes no bell any more; what runs goes on. */
  startDraining(): void {
    this.#isDraining = true;
  }

  /** Tells everything that runs, and what may still begin, to stop. */
  stopAll(kind: "drain" | "kill"): void {
    this.#isDraining = true;
    this.#stopping = kind;
    for (const attempt of this.#live.values()) attempt.stop(kind);
  }

  /** Resolves when nothing runs and every finish is answered or on disk. */
  async idle(): Promise<void> {
    while (this.#chains.size > 0) await Promise.all(this.#chains);
  }

  /** Brings the outcomes of an earlier process of this folder to the server. */
  async sendKept(): Promise<void> {
    const { outbox, rooms } = this.#options;
    for (const item of await outbox.list()) {
      rooms.logger.info({ runId: item.runId, step: item.step }, "sending a kept outcome");
      this.#chain(async () => {
        // With its offer: the first sending may have started the next attempt, which nobody else runs.
        const answer = await this.#deliver(item, false);
        if (answer !== undefined) await outbox.remove(item);
        const next = answer?.type === "accepted" ? answer.next : undefined;
        if (next !== undefined) await this.#runChain(next, undefined, performance.now());
      });
    }
  }

  async #waitForSlot(bell: Bell): Promise<SlotGrant | undefined> {
    const { gate } = this.#options;
    const need = needOfClass(bell.classKey);
    const grant = await gate.acquire(need, AbortSignal.timeout(BELL_WAIT_MS));
    if (grant === undefined) await this.#push({ type: "noSlot", ...refOf(bell), ring: bell.ring });
    return grant;
  }

  async #start(bell: Bell, grant: SlotGrant): Promise<"started" | "refused" | "failed"> {
    const sentAt = performance.now();
    const answer = await this.#push({ type: "start", ...refOf(bell), ring: bell.ring });
    if (answer?.type !== "started") {
      grant.release();
      return answer === undefined || answer.type === "problem" ? "failed" : "refused";
    }
    const { assignment } = answer;
    this.#chain(async () => {
      await this.#runChain(assignment, grant, sentAt);
    });
    return "started";
  }

  /** Runs an attempt and, in the same slot, whatever each accepted finish brings next. */
  async #runChain(
    first: Assignment,
    firstGrant: SlotGrant | undefined,
    firstSentAt: number,
  ): Promise<void> {
    let assignment: Assignment | undefined = first;
    let grant = firstGrant;
    let sentAt = firstSentAt;
    try {
      while (assignment !== undefined) {
        const attempt: ActiveAttempt = new ActiveAttempt(assignment, sentAt, this.#options.rooms);
        const key = attemptKey(attempt.identity);
        this.#live.set(key, attempt);
        if (this.#stopping !== undefined) attempt.stop(this.#stopping);
        try {
          grant = await this.#fit(assignment, grant, attempt.stopped);
          const result: AttemptResult = await attempt.run(grant?.devices ?? []);
          sentAt = performance.now();
          assignment = await this.#finish(attempt, result, grant);
        } finally {
          this.#live.delete(key);
        }
      }
    } finally {
      grant?.release();
    }
  }

  async #finish(
    attempt: ActiveAttempt,
    { outcome, usage }: AttemptResult,
    grant: SlotGrant | undefined,
  ): Promise<Assignment | undefined> {
    if (outcome === undefined) return undefined;
    const { rooms, gate, metrics } = this.#options;
    metrics.count("coppice_attempts_total", { outcome: outcome.type });
    const mayOffer = grant !== undefined && !this.#isDraining && !gate.shouldYield;
    const offer = { lease: newLease(), gpus: grant?.devices.length ?? 0 };
    const item = {
      type: "finish" as const,
      ...attempt.identity,
      outcome: outcome satisfies Outcome,
      usage,
      ...(mayOffer ? { offer } : {}),
    };
    const answer = await this.#deliver(item, true);
    if (answer?.type === "problem") {
      const { runId, step, item: index } = attempt.identity;
      const { code, message } = answer;
      const fields = { runId, step, item: index, code, detail: message };
      rooms.logger.error(fields, "the server refused an outcome");
    }
    return answer?.type === "accepted" ? answer.next : undefined;
  }

  /** @returns undefined where the worker stopped before there was an answer */
  async #deliver(item: FinishItem, mayKeep: boolean): Promise<WorkAnswer | undefined> {
    const { rooms, outbox } = this.#options;
    let kept: Promise<void> | undefined;
    const keep = (): void => {
      kept ??= outbox.save(item).catch((error: unknown) => {
        rooms.logger.error({ err: error }, "an outcome could not be kept on disk");
      });
    };
    const isAway = rooms.api.work.isAway;
    if (mayKeep && isAway) keep();
    const timer = mayKeep && !isAway ? setTimeout(keep, SPOOL_AFTER_MS) : undefined;
    const answer = await this.#push(item);
    clearTimeout(timer);
    if (answer === undefined && mayKeep) keep();
    await kept;
    if (answer !== undefined && kept !== undefined) await outbox.remove(item);
    return answer;
  }

  /** Repeats what the server could not do just now; undefined once the worker has stopped. */
  async #push(item: WorkItem): Promise<WorkAnswer | undefined> {
    for (let failures = 2; ; failures += 1) {
      try {
        const answer = await this.#options.rooms.api.work.push(item);
        if (answer.type !== "problem" || !answer.isRetryable) return answer;
      } catch (error) {
        if (!isCoppiceError(error) || error.code === "CPC_SERVER_UNREACHABLE") return undefined;
        return { type: "problem", code: error.code, message: error.message, isRetryable: false };
      }
      await waitBeforeRetry(failures);
    }
  }

  /**
   * A step may need another number of slots or devices than the slot that it came with.
   * @returns undefined where the attempt was stopped before there was room
   */
  async #fit(
    { spec }: Assignment,
    grant: SlotGrant | undefined,
    stopped: AbortSignal,
  ): Promise<SlotGrant | undefined> {
    if (grant?.slots === spec.slots && grant.devices.length === spec.gpu) return grant;
    // Given back first: two attempts that each hold one slot and want two would wait for ever.
    grant?.release();
    return await this.#options.gate.acquire({ slots: spec.slots, gpus: spec.gpu }, stopped);
  }

  #chain(work: () => Promise<void>): void {
    const chain = work()
      .catch((error: unknown) => {
        this.#options.rooms.logger.error({ err: error }, "an attempt's supervision failed");
      })
      .finally(() => this.#chains.delete(chain));
    this.#chains.add(chain);
  }
}

const newLease = (): string => randomUUID();

const refOf = (bell: Bell) => ({
  runId: bell.runId satisfies RunId as string,
  step: bell.step,
  item: bell.item,
  attempt: bell.attempt,
  lease: newLease(),
});

/** A class key begins with `cpu` or `gpu<count>`. */
export const needOfClass = (classKey: string): { slots: number; gpus: number } => ({
  slots: 1,
  gpus: Number(/^gpu(\d+)/.exec(classKey)?.[1] ?? 0),
});
