/**
 * The other lane: heartbeats, logs, metrics and checkpoints of running attempts.
 *
 * What must stay true: nothing here is a state change; each item is fenced by (attempt, lease) and may come
 * again. A heartbeat's answer is how a worker hears that its attempt was cancelled or superseded.
 */
import type { StreamAnswer, StreamItem } from "@coppice/contract";
import {
  attemptKey,
  type AttemptRef,
  type LeaseToken,
  type RunId,
  type WorkerId,
} from "@coppice/core";
import {
  checkLeases,
  type Database,
  insertLogs,
  insertMetrics,
  type LeasedRow,
  type LogChunk,
  type MetricPoint,
  renewLeases,
  saveCheckpoint,
  seeWorker,
  trimLogs,
} from "@coppice/store";
import { workerServesClass } from "@coppice/pipeline";

import type { Facts } from "./facts.ts";

export interface StreamContext {
  readonly db: Database;
  readonly facts: Facts;
  readonly leaseMs: number;
}

type AttemptItem = Exclude<StreamItem, { type: "worker" }>;
type Fenced = AttemptRef & { readonly lease: LeaseToken };

const fenceOf = (item: AttemptItem): Fenced => ({
  runId: item.runId as RunId,
  step: item.step,
  item: item.item,
  attempt: item.attempt,
  lease: item.lease as LeaseToken,
});

const keyOf = (ref: { runId: string; step: number; item: number; attempt: number }): string =>
  attemptKey({ ...ref, runId: ref.runId as RunId });

export const streamItems = async (
  context: StreamContext,
  workerId: WorkerId,
  items: readonly StreamItem[],
): Promise<StreamAnswer[]> => {
  const attempts = items.filter((item): item is AttemptItem => item.type !== "worker");
  const held = await holdLeases(context, attempts);
  await Promise.all([
    storeLogs(context, attempts, held),
    storeMetrics(context, attempts, held),
    storeCheckpoints(context, attempts),
  ]);
  const answers: StreamAnswer[] = [];
  for (const item of items) {
    answers.push(
      item.type === "worker" ? await seen(context, workerId, item) : answerFor(item, held),
    );
  }
  return answers;
};

/** Renews what has a heartbeat, checks the rest. @returns what is still held, by attempt */
const holdLeases = async (
  { db, leaseMs }: StreamContext,
  items: readonly AttemptItem[],
): Promise<Map<string, LeasedRow>> => {
  const beating = new Map<string, Fenced>();
  const others = new Map<string, Fenced>();
  for (const item of items) if (item.type === "heartbeat") beating.set(keyOf(item), fenceOf(item));
  for (const item of items) if (!beating.has(keyOf(item))) others.set(keyOf(item), fenceOf(item));
  const renewed = new Map(
    (await renewLeases(db, [...beating.values()], leaseMs)).map((row) => [keyOf(row), row]),
  );
  for (const [key, fenced] of beating) if (!renewed.has(key)) others.set(key, fenced);
  for (const row of await checkLeases(db, [...others.values()])) renewed.set(keyOf(row), row);
  return renewed;
};

const answerFor = (item: AttemptItem, held: ReadonlyMap<string, LeasedRow>): StreamAnswer => {
  const row = held.get(keyOf(item));
  if (row === undefined) return { type: "superseded" };
  return row.isCancelRequested ? { type: "cancelled", reason: "cancelled" } : { type: "ok" };
};

const storeLogs = async (
  { db }: StreamContext,
  items: readonly AttemptItem[],
  held: ReadonlyMap<string, LeasedRow>,
): Promise<void> => {
  const chunks: LogChunk[] = [];
  const ends = new Map<string, AttemptRef & { lastOffset: number }>();
  for (const item of items) {
    const row = held.get(keyOf(item));
    if (item.type !== "log" || row === undefined) continue;
    const ref = fenceOf(item);
    chunks.push({
      ...ref,
      projectId: row.projectId,
      offset: item.offset,
      sizeBytes: Buffer.byteLength(item.text),
      // One byte for one byte, so that offsets still count: PostgreSQL holds no NUL.
      text: item.text.replaceAll("\0", "\u001A"),
    });
    const last = ends.get(keyOf(item))?.lastOffset ?? 0;
    ends.set(keyOf(item), { ...ref, lastOffset: Math.max(last, item.offset) });
  }
  await insertLogs(db, chunks);
  await trimLogs(db, [...ends.values()]);
};

const storeMetrics = async (
  { db }: StreamContext,
  items: readonly AttemptItem[],
  held: ReadonlyMap<string, LeasedRow>,
): Promise<void> => {
  const points: MetricPoint[] = [];
  for (const item of items) {
    const row = held.get(keyOf(item));
    if (item.type !== "metric" || row === undefined) continue;
    const ref = fenceOf(item);
    for (const { key, step, value, atMs } of item.points) {
      points.push({
        ...ref,
        projectId: row.projectId,
        key: key.replaceAll("\0", "\u001A"),
        metricStep: step,
        value,
        atMs,
      });
    }
  }
  await insertMetrics(db, points);
};

const storeCheckpoints = async (
  { db }: StreamContext,
  items: readonly AttemptItem[],
): Promise<void> => {
  // The last of an attempt counts.
  const newest = new Map<string, Fenced & { sha256: string }>();
  for (const item of items) {
    if (item.type === "checkpoint")
      newest.set(keyOf(item), { ...fenceOf(item), sha256: item.sha256 });
  }
  await Promise.all([...newest.values()].map((checkpoint) => saveCheckpoint(db, checkpoint)));
};

const seen = async (
  { db, facts }: StreamContext,
  workerId: WorkerId,
  item: Extract<StreamItem, { type: "worker" }>,
): Promise<StreamAnswer> => {
  const worker = await seeWorker(db, workerId, item.freeSlots, item.freeGpus, item.isDraining);
  if (worker === undefined) {
    return {
      type: "problem",
      code: "CPC_WORKER_NOT_FOUND",
      message: "Register again.",
      isRetryable: false,
    };
  }
  const classes = facts.classes().filter((entry) => workerServesClass(worker, entry));
  return { type: "classes", classes: classes.map((entry) => entry.key) };
};
