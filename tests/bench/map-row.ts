/**
 * A map of 1,000 and of 10,000 items that do nothing: whether the time per item stays, and how
 * large the heap of the process gets that plans, commits and here also works.
 */
import type { PipelineVersionId } from "@coppice/core";
import { succeeded } from "@coppice/testing";
import { type EngineRig, openEngineRig, type RigWorker } from "./engine-rig.ts";
import { mapPipeline } from "./engine-rows.ts";
import { startMeter, totalCpuMs, type Usage } from "./machine.ts";
import type { MeasuredRow } from "./rows.ts";

const SLOTS = 256;
const SMALL_REPEATS = 5;
const SAMPLE_MS = 20;
const HEAP_TARGET_MB = 300;
/** Linear, give or take what a busy machine does to a measurement of seconds. */
const LINEAR_TARGET = 1.2;

/** The most that was in use at any look, garbage that was not collected yet included. */
const watchHeap = () => {
  let peakBytes = 0;
  const look = (): void => {
    peakBytes = Math.max(peakBytes, process.memoryUsage().heapUsed);
  };
  const timer = setInterval(look, SAMPLE_MS);
  return {
    stop: (): number => {
      look();
      clearInterval(timer);
      return peakBytes / 2 ** 20;
    },
  };
};

export const measureMap = async (isQuick: boolean): Promise<readonly MeasuredRow[]> => {
  const [small, large] = isQuick ? [100, 1000] : [1000, 10_000];
  const rig = await openEngineRig("redis");
  let items: readonly number[] = [];
  try {
    const versionId = await rig.deploy(mapPipeline);
    const worker = await rig.startWorker(SLOTS, ({ stepKey }) =>
      succeeded(stepKey === "a" ? { items: [...items] } : null),
    );
    const runOne = async (size: number) => {
      items = Array.from({ length: size }, (_, index) => index);
      return timeRun(rig, versionId, worker, size + 2);
    };
    await runOne(small);
    const smallRuns: Usage[] = [];
    for (let repeat = 0; repeat < SMALL_REPEATS; repeat += 1) smallRuns.push(await runOne(small));
    const heap = watchHeap();
    const usage = await runOne(large);
    const heapMb = heap.stop();
    const perSmall = Math.min(...smallRuns.map(({ wallMs }) => wallMs)) / small;
    const perLarge = usage.wallMs / large;
    const cpuSmall = Math.min(...smallRuns.map(totalCpuMs)) / small;
    const cpuLarge = totalCpuMs(usage) / large;
    const sizes = `${small.toLocaleString("en")} → ${large.toLocaleString("en")} items`;
    const times = `${perSmall.toFixed(3)} → ${perLarge.toFixed(3)} ms an item`;
    return [
      {
        what: `time per item of a map as it grows, ${sizes}`,
        unit: "ratio",
        measured: perLarge / perSmall,
        target: LINEAR_TARGET,
        isFloor: false,
        limits: [],
        notes: [
          times,
          `CPU ${cpuSmall.toFixed(3)} → ${cpuLarge.toFixed(3)} ms an item`,
          `${SLOTS} slots, Redis, one process`,
        ],
      },
      {
        what: `heap of the engine's process at a map of ${large.toLocaleString("en")} items`,
        unit: "MB",
        measured: heapMb,
        target: HEAP_TARGET_MB,
        isFloor: false,
        limits: [],
        notes: ["highest value seen, uncollected garbage and the worker's side included"],
      },
    ];
  } finally {
    await rig.close();
  }
};

const timeRun = async (
  rig: EngineRig,
  pipelineVersionId: PipelineVersionId,
  worker: RigWorker,
  steps: number,
) => {
  const { engine, projectId, servers } = rig;
  const meter = startMeter(servers.pids, "node");
  const reached = worker.reach(worker.finished() + steps);
  await engine.submit({ projectId, pipelineVersionId, params: {} });
  await reached;
  return meter.stop();
};
