/**
 * Listens to one class's queue. What must stay true: a bell is taken only with a slot in hand; a
 * taken bell is always answered to BullMQ, even where `onBell` throws, because the database rings
 * again; a broken connection is replaced, after at most two seconds, until told to stop.
 *
 * BullMQ's own loop is not used: it takes as many jobs as its concurrency allows, while slots here
 * are shared by several classes and come free at any time. Its parts are: claim without blocking,
 * wait without claiming, complete and claim the next in one round trip.
 */
import type { Logger } from "@coppice/core";
import { Job, type JobJson } from "bullmq";
import { queueName } from "./address.ts";
import type { Backend, BellWorker } from "./backend.ts";
import { type Bell, type BellAnswer, parseBell } from "./bell.ts";
import { DEADLINE, orDeadline, sleep, withinMs } from "./deadline.ts";
import { reserveSlot, type Slot, type SlotGate } from "./slots.ts";

/** Owns the slot from the call on; resolves once the attempt has been started or refused. */
export type OnBell = (bell: Bell, slot: Slot) => Promise<BellAnswer>;

export interface ClassListenerOptions {
  readonly backend: Backend;
  readonly classKey: string;
  readonly slots: SlotGate;
  readonly onBell: OnBell;
  readonly logger: Logger;
}

type BellInHand = Job<unknown, string>;

const FIRST_BACKOFF_MS = 100;
const BACKOFF_CAP_MS = 2000;
const WORKER_CLOSE_MS = 1000;
const COMPLETE_DEADLINE_MS = 10_000;

export class ClassListener {
  readonly #options: ClassListenerOptions;
  readonly #logger: Logger;
  readonly #stopping = new AbortController();
  readonly #lanes = new Set<Promise<void>>();
  readonly #running: Promise<void>;
  #tokens = 0;
  #isBroken = false;

  constructor(options: ClassListenerOptions) {
    this.#options = options;
    this.#logger = options.logger.child({ classKey: options.classKey });
    this.#running = this.#run();
  }

  /** Takes no further bell; waits for those in hand, but no longer than the deadline. */
  async stop(deadlineMs: number): Promise<void> {
    this.#stopping.abort();
    await withinMs(this.#running, deadlineMs);
  }

  async #run(): Promise<void> {
    const { signal } = this.#stopping;
    let backoffMs = FIRST_BACKOFF_MS;
    while (!signal.aborted) {
      const worker = this.#openWorker();
      try {
        await this.#serve(worker, () => {
          backoffMs = FIRST_BACKOFF_MS;
          if (this.#isBroken) this.#logger.info({}, "listening for bells again");
          this.#isBroken = false;
        });
      } catch (error) {
        if (!signal.aborted && !this.#isBroken) {
          this.#logger.warn({ err: error }, "listening for bells broke off; trying again");
        }
        this.#isBroken = true;
      }
      if (signal.aborted) await Promise.allSettled(this.#lanes);
      await this.#closeWorker(worker);
      if (!signal.aborted) await sleep(backoffMs, signal);
      backoffMs = Math.min(backoffMs * 2, BACKOFF_CAP_MS);
    }
  }

  #openWorker(): BellWorker {
    const worker = this.#options.backend.openWorker(queueName(this.#options.classKey));
    worker.on("error", (error) => {
      this.#logger.debug({ err: error }, "BullMQ's worker reports an error");
    });
    return worker;
  }

  async #serve(worker: BellWorker, onAnswer: () => void): Promise<void> {
    const { backend, classKey, slots } = this.#options;
    const { signal } = this.#stopping;
    // Gives the bells of dead workers back to the queue: housekeeping, nothing waits for it.
    void worker.startStalledCheckTimer().catch(() => undefined);
    for (;;) {
      const slot = await reserveSlot(slots, classKey, signal);
      if (slot === undefined) return;
      const token = this.#nextToken(worker);
      let job: BellInHand | undefined;
      try {
        job = await worker.getNextJob(token, { block: false });
      } catch (error) {
        slot.release();
        throw error;
      }
      onAnswer();
      if (job !== undefined && signal.aborted) {
        slot.release();
        await job.moveToWait(token);
        return;
      }
      if (job !== undefined) {
        this.#openLane(worker, job, token, slot);
        continue;
      }
      slot.release();
      if (signal.aborted) return;
      await this.#orStopped(worker.getBackend().waitForJob(backend.waitSeconds));
    }
  }

  /** Waiting claims nothing, so it may be left behind. */
  async #orStopped<T>(promise: Promise<T>): Promise<T | undefined> {
    const { signal } = this.#stopping;
    promise.catch(() => undefined);
    return new Promise<T | undefined>((resolve, reject) => {
      const stopped = (): void => resolve(undefined);
      signal.addEventListener("abort", stopped, { once: true });
      promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", stopped));
      if (signal.aborted) stopped();
    });
  }

  #openLane(worker: BellWorker, job: BellInHand, token: string, slot: Slot): void {
    const lane = this.#answerAll(worker, job, token, slot)
      .catch((error: unknown) => {
        // The bell stays "active" in BullMQ until its lock ends. The database knows better.
        this.#logger.debug({ err: error }, "a bell could not be marked as answered");
      })
      .finally(() => this.#lanes.delete(lane));
    this.#lanes.add(lane);
  }

  /** Answers a bell and, while there are both a slot and a next bell, the next ones. */
  async #answerAll(
    worker: BellWorker,
    firstJob: BellInHand,
    token: string,
    firstSlot: Slot,
  ): Promise<void> {
    const { classKey, slots } = this.#options;
    let job: BellInHand | undefined = firstJob;
    let slot: Slot | undefined = firstSlot;
    while (job !== undefined && slot !== undefined) {
      const answer = await this.#answer(job, slot);
      const nextSlot: Slot | undefined = this.#stopping.signal.aborted
        ? undefined
        : slots.tryReserve(classKey);
      try {
        job = await this.#complete(worker, job, answer, token, nextSlot !== undefined);
      } catch (error) {
        nextSlot?.release();
        throw error;
      }
      if (job === undefined) nextSlot?.release();
      slot = nextSlot;
    }
  }

  async #answer(job: BellInHand, slot: Slot): Promise<string> {
    const bell = parseBell(this.#options.classKey, job.data, job.priority);
    if (bell === undefined) {
      slot.release();
      this.#logger.warn({ jobId: job.id }, "dropped a message that is not a bell of this version");
      return "dropped";
    }
    try {
      return await this.#options.onBell(bell, slot);
    } catch (error) {
      slot.release();
      this.#logger.warn({ err: error, jobId: job.id }, "a bell could not be answered");
      return "failed";
    }
  }

  /** Marks the bell as done and, where wanted, claims the next one in the same round trip. */
  async #complete(
    worker: BellWorker,
    job: BellInHand,
    answer: string,
    token: string,
    wantsNext: boolean,
  ): Promise<BellInHand | undefined> {
    // A worker that was closed meanwhile never answers; the slot in hand must not wait for it.
    const next = await orDeadline(
      job.moveToCompleted(answer, token, wantsNext),
      COMPLETE_DEADLINE_MS,
    );
    if (next === DEADLINE || !Array.isArray(next)) return undefined;
    const json: JobJson | null | undefined = next[0];
    const id: string = next[1];
    if (!json) return undefined;
    return Job.fromJSON(worker, json, id);
  }

  #nextToken(worker: BellWorker): string {
    this.#tokens += 1;
    return `${worker.id}-${this.#tokens}`;
  }

  async #closeWorker(worker: BellWorker): Promise<void> {
    // Forced, since bells in hand have been waited for, or their connection is gone.
    const closed = await withinMs(
      worker.close(true).then(() => true),
      WORKER_CLOSE_MS,
    ).catch(() => undefined);
    if (closed !== true) void worker.disconnect().catch(() => undefined);
  }
}
