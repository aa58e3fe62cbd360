/**
 * Group commit: events that arrive while a commit is under way become the next batch.
 *
 * What must stay true: no timer; a batch closes when the previous commit returns. Events of one run go
 * through one lane, in order. An unexpected error costs only the event that causes it: the batch is
 * replayed one by one.
 */
import { isCoppiceError, type RunId } from "@coppice/core";

import { type EngineEvent, type EventResult, runOf } from "./events.ts";

export interface Batcher {
  submit(event: EngineEvent): Promise<EventResult>;
  /** Events that wait or are being committed. */
  depth(): number;
  /** Resolves when everything that was submitted is settled. */
  idle(): Promise<void>;
}

export interface BatcherOptions {
  /** Connections that commit at a time; runs are spread over them. */
  readonly lanes: number;
  readonly batchMax: number;
  readonly commit: (
    events: readonly EngineEvent[],
    lane: number,
  ) => Promise<readonly EventResult[]>;
}

interface Waiting {
  readonly event: EngineEvent;
  readonly resolve: (result: EventResult) => void;
  readonly reject: (error: unknown) => void;
}

interface Lane {
  readonly index: number;
  waiting: Waiting[];
  isCommitting: boolean;
}

/** The last characters of a version 7 UUID are random. */
const laneOf = (runId: RunId | undefined, lanes: number): number =>
  runId === undefined ? 0 : Number.parseInt(runId.slice(-4), 16) % lanes;

export const openBatcher = (options: BatcherOptions): Batcher => {
  const lanes: Lane[] = Array.from({ length: options.lanes }, (_, index) => ({
    index,
    waiting: [],
    isCommitting: false,
  }));
  let idleWaiters: (() => void)[] = [];

  const depth = (): number =>
    lanes.reduce((sum, lane) => sum + lane.waiting.length + Number(lane.isCommitting), 0);

  const settle = async (lane: Lane, batch: readonly Waiting[]): Promise<void> => {
    try {
      const results = await options.commit(
        batch.map(({ event }) => event),
        lane.index,
      );
      for (const [index, { resolve, reject }] of batch.entries()) {
        const result = results[index];
        if (result === undefined) reject(new Error("a commit answers every event"));
        else resolve(result);
      }
    } catch (error) {
      const isAway = isCoppiceError(error) && error.code === "CPC_DATABASE_UNREACHABLE";
      if (batch.length === 1 || isAway) for (const { reject } of batch) reject(error);
      else for (const single of batch) await settle(lane, [single]);
    }
  };

  const drain = async (lane: Lane): Promise<void> => {
    lane.isCommitting = true;
    while (lane.waiting.length > 0) {
      const batch = lane.waiting.splice(0, options.batchMax);
      await settle(lane, batch);
    }
    lane.isCommitting = false;
    if (depth() === 0) {
      for (const wake of idleWaiters) wake();
      idleWaiters = [];
    }
  };

  return {
    submit: (event) =>
      new Promise((resolve, reject) => {
        const lane = lanes[laneOf(runOf(event), lanes.length)];
        if (lane === undefined) throw new RangeError("a batcher has at least one lane");
        lane.waiting.push({ event, resolve, reject });
        // Whatever else this turn of the event loop brings belongs to the same batch.
        if (!lane.isCommitting) {
          lane.isCommitting = true;
          setImmediate(() => void drain(lane));
        }
      }),
    depth,
    idle: () =>
      depth() === 0
        ? Promise.resolve()
        : new Promise((resolve) => {
            idleWaiters.push(resolve);
          }),
  };
};
