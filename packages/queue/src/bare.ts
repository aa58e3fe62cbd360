/**
 * BullMQ alone, with the doorbell's settings: add no-op jobs in bulk, process them with BullMQ's
 * own worker loop. The yardstick for what the doorbell and everything above it cost.
 */
import { randomUUID } from "node:crypto";
import type { DoorbellAddress } from "./address.ts";
import { requireId, type RunId, silentLogger } from "@coppice/core";
import type { BellWorker } from "./backend.ts";
import { type Bell, toBellJob } from "./bell.ts";
import { openBackend } from "./open-backend.ts";

const CHUNK = 500;
const DEFAULT_CONCURRENCY = 32;

export interface BareResult {
  readonly jobs: number;
  readonly addsPerSecond: number;
  readonly processedPerSecond: number;
}

export interface BareOptions {
  /** How many jobs BullMQ's worker processes at once. */
  readonly concurrency?: number;
}

const benchBell = (classKey: string, runId: RunId, item: number): Bell => ({
  classKey,
  runId,
  step: 0,
  item,
  attempt: 1,
  ring: 0,
  priority: 0,
});

export const measureBareQueue = async (
  address: DoorbellAddress,
  jobs: number,
  options: BareOptions = {},
): Promise<BareResult> => {
  const name = `bare-${randomUUID()}`;
  const runId = requireId("run", randomUUID());
  const producer = openBackend(address, { side: "producer", logger: silentLogger });
  const consumer = openBackend(address, { side: "listener", logger: silentLogger });
  await producer.check();
  await consumer.check();
  const queue = producer.openQueue(name);
  const addStart = performance.now();
  for (let from = 0; from < jobs; from += CHUNK) {
    const bells = Array.from({ length: Math.min(CHUNK, jobs - from) }, (_, index) =>
      toBellJob(benchBell(name, runId, from + index), producer.keep),
    );
    await queue.addBulk(bells);
  }
  const addMs = performance.now() - addStart;
  const processStart = performance.now();
  let worker: BellWorker | undefined;
  await new Promise<void>((resolve, reject) => {
    let done = 0;
    worker = consumer.openWorker(name, {
      concurrency: options.concurrency ?? DEFAULT_CONCURRENCY,
      process: () => {
        done += 1;
        if (done === jobs) resolve();
      },
    });
    worker.on("error", reject);
  });
  const processMs = performance.now() - processStart;
  await worker?.close();
  await queue.obliterate({ force: true });
  await queue.close();
  await Promise.all([producer.close(1000), consumer.close(1000)]);
  return {
    jobs,
    addsPerSecond: jobs / (addMs / 1000),
    processedPerSecond: jobs / (processMs / 1000),
  };
};
