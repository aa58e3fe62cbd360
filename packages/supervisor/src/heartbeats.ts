/**
 * Heartbeats of the worker and of every live attempt.
 *
 * What must stay true: at most one heartbeat of an attempt is under way, so that an outage does not
 * pile them up; an answer counts from when its question was sent.
 */
import type { StreamAnswer, StreamItem } from "@coppice/contract";
import type { Logger } from "@coppice/core";

import type { ActiveAttempt } from "./attempt.ts";

export interface HeartbeatOptions {
  readonly push: (item: StreamItem) => Promise<StreamAnswer>;
  readonly live: () => readonly ActiveAttempt[];
  readonly worker: () => Extract<StreamItem, { type: "worker" }>;
  readonly onClasses: (classKeys: readonly string[]) => void;
  readonly logger: Logger;
}

export class Heartbeats {
  readonly #options: HeartbeatOptions;
  readonly #underWay = new WeakSet<ActiveAttempt>();
  #isWorkerUnderWay = false;
  #timer: NodeJS.Timeout | undefined;

  constructor(options: HeartbeatOptions) {
    this.#options = options;
  }

  /** Also changes the rhythm, where a later registration gives another one. */
  start(heartbeatMs: number): void {
    clearInterval(this.#timer);
    this.#timer = setInterval(() => this.beat(), heartbeatMs);
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  beat(): void {
    for (const attempt of this.#options.live()) void this.#beatAttempt(attempt);
    void this.#beatWorker();
  }

  /** Tells the server about the worker now; resolves when it was answered. */
  async announce(): Promise<void> {
    try {
      const answer = await this.#options.push(this.#options.worker());
      if (answer.type === "classes") this.#options.onClasses(answer.classes);
    } catch (error) {
      this.#options.logger.debug({ err: error }, "a worker's heartbeat was not answered");
    }
  }

  async #beatAttempt(attempt: ActiveAttempt): Promise<void> {
    if (this.#underWay.has(attempt)) return;
    this.#underWay.add(attempt);
    const sentAt = performance.now();
    try {
      const answer = await this.#options.push({ type: "heartbeat", ...attempt.identity });
      attempt.onStreamAnswer(answer, sentAt);
    } catch (error) {
      this.#options.logger.debug({ err: error }, "a heartbeat was not answered");
    } finally {
      this.#underWay.delete(attempt);
    }
  }

  async #beatWorker(): Promise<void> {
    if (this.#isWorkerUnderWay) return;
    this.#isWorkerUnderWay = true;
    await this.announce();
    this.#isWorkerUnderWay = false;
  }
}
