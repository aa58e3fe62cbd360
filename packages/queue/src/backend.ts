/**
 * What Redis and PostgreSQL have in common below the doorbell: they open BullMQ's queues and
 * workers over connections that are shared, small and closed within a deadline.
 */
import type { ErrorCode, Logger } from "@coppice/core";
import type { IQueueBackend, JobsOptions, Queue, Worker } from "bullmq";
import type { BellPayload } from "./bell.ts";

export type BellQueue = Queue<
  BellPayload,
  string,
  string,
  BellPayload,
  string,
  string,
  IQueueBackend
>;
export type BellWorker = Worker<BellPayload, string, string, IQueueBackend>;

/** A worker only waits: its commands may queue up while the server is away. A producer may not. */
export type Side = "producer" | "listener";

export interface Backend {
  readonly kind: "redis" | "postgres";
  /** The code for "the server can't be reached". */
  readonly unreachable: ErrorCode;
  /** How jobs are kept once they are done. */
  readonly keep: JobsOptions;
  /** Up to so many bells are cheaper rung one by one than in bulk. */
  readonly addSingly: number;
  /** The longest blocking wait. Bounds how late a missed wake-up is noticed. */
  readonly waitSeconds: number;
  /** Throws where the server can't be reached; the checks of its settings are made here. */
  check(): Promise<void>;
  /** False where a command would surely fail now. */
  isConnected(): boolean;
  openQueue(name: string): BellQueue;
  /** Without a loop, it is claimed from by hand; with one, BullMQ's own loop runs at once. */
  openWorker(name: string, loop?: BullLoop): BellWorker;
  /** Ends every connection, whether or not the server answers. */
  close(deadlineMs: number): Promise<void>;
}

/** BullMQ's own way to work: the yardstick of `measureBareQueue`, not how bells are heard. */
export interface BullLoop {
  readonly concurrency: number;
  readonly process: () => void;
}

export interface BackendOptions {
  readonly side: Side;
  readonly logger: Logger;
}

/**
 * A bell is in hand only until the worker's start was asked for: milliseconds, seconds when the API
 * is slow. The lock outlives that; a worker that died gives its bells back after lock plus scan,
 * which nobody waits for: the database rings again long before.
 */
const LOCK_DURATION_MS = 30_000;
const STALLED_INTERVAL_MS = 30_000;
/** BullMQ must never decide that a bell failed. */
const MAX_STALLED_COUNT = 1_000_000;
/** BullMQ's own event stream has no reader here, so it is kept short. */
const EVENTS_KEPT = 1000;
/** Bull Board shows an hour of bells, and failures (there should be none) for a day. */
export const COMPLETED_AGE_S = 3600;
export const FAILED_AGE_S = 86_400;

/** What BullMQ's constructors take beside the connection; the same on both backends. */
export const workerOptions = (loop: BullLoop | undefined) => ({
  autorun: loop !== undefined,
  concurrency: loop?.concurrency ?? 1,
  lockDuration: LOCK_DURATION_MS,
  stalledInterval: STALLED_INTERVAL_MS,
  maxStalledCount: MAX_STALLED_COUNT,
});
export const processorOf = (loop: BullLoop | undefined): (() => Promise<string>) | null =>
  loop === undefined
    ? null
    : async () => {
        loop.process();
        return Promise.resolve("started");
      };
export const queueOptions = { streams: { events: { maxLen: EVENTS_KEPT } } };
