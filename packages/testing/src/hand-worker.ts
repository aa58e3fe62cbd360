/**
 * A worker moved by hand: it hears no bells and beats only when told, so that a test decides what
 * is sent, how often, in which order and when never.
 */
import { randomUUID } from "node:crypto";
import type { Assignment, Outcome, StreamAnswer, WorkAnswer, WorkItem } from "@coppice/contract";
import type { RunId, TokenId, WorkerId } from "@coppice/core";
import type { Engine } from "@coppice/engine";
import type { Database } from "@coppice/store";
import { waitUntil } from "./wait-until.ts";

export type FinishItem = Extract<WorkItem, { type: "finish" }>;
export type StartItem = Extract<WorkItem, { type: "start" }>;

export interface HandWorker {
  readonly workerId: WorkerId;
  /** Beats until the step run is queued; the start that its bell would cause. */
  queued(runId: RunId, step: number, item?: number): Promise<StartItem>;
  send(item: WorkItem): Promise<WorkAnswer>;
  /** `queued`, then `send`, and what was started. */
  start(runId: RunId, step: number, item?: number): Promise<Assignment>;
  finishOf(assignment: Assignment, outcome: Outcome, hasOffer?: boolean): FinishItem;
  /** One heartbeat for each; the worker's own comes along. */
  beat(...assignments: readonly Assignment[]): Promise<StreamAnswer[]>;
}

export const registerHandWorker = async (
  world: { readonly engine: Engine; readonly db: Database; readonly workerTokenId: TokenId },
  labels: Record<string, string> = {},
): Promise<HandWorker> => {
  const { engine, db } = world;
  const slots = 100;
  const { workerId } = await engine.registerWorker(world.workerTokenId, {
    protocol: 1,
    name: "by hand",
    host: "localhost",
    version: "0.0.0",
    labels,
    slots,
    devices: [],
    clockMs: Date.now(),
  });
  const send = async (item: WorkItem): Promise<WorkAnswer> => {
    const [answer] = await engine.work(workerId, [item]);
    if (answer === undefined) throw new Error("expected an answer");
    return answer;
  };
  const beat = async (...assignments: readonly Assignment[]): Promise<StreamAnswer[]> => {
    const own = { type: "worker" as const, freeSlots: slots, freeGpus: 0, isDraining: false };
    const beats = assignments.map(({ runId, step, item, attempt, lease }) => ({
      type: "heartbeat" as const,
      runId,
      step,
      item,
      attempt,
      lease,
    }));
    return (await engine.stream(workerId, [own, ...beats])).slice(1);
  };
  const queued = async (runId: RunId, step: number, item = 0): Promise<StartItem> => {
    const row = await waitUntil(
      async () => {
        // Only for a worker that was seen lately is a bell rung.
        await beat();
        const rows = await db.query<{ attempt: number; ring: number }>(
          `select attempt, ring from step_run
           where run_id = $1 and step = $2 and item = $3 and state = 'queued'`,
          [runId, step, item],
        );
        return rows[0];
      },
      { what: `${runId}/${step}[${item}] to be queued` },
    );
    const { attempt, ring } = row;
    return { type: "start", runId, step, item, attempt, ring, lease: randomUUID() };
  };
  return {
    workerId,
    queued,
    send,
    start: async (runId, step, item) => {
      const answer = await send(await queued(runId, step, item));
      if (answer.type !== "started") throw new Error(`expected a start, not ${answer.type}`);
      return answer.assignment;
    },
    finishOf: ({ runId, step, item, attempt, lease }, outcome, hasOffer = false) => ({
      type: "finish",
      runId,
      step,
      item,
      attempt,
      lease,
      outcome,
      ...(hasOffer ? { offer: { lease: randomUUID(), gpus: 0 } } : {}),
    }),
    beat,
  };
};
