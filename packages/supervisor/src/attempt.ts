/**
 * One attempt from its assignment to its outcome.
 *
 * What must stay true: it ends in every case, and its child is given back or ended; the server's
 * silence does not stop it, unless the step is exclusive; nothing is reported after `superseded`.
 */
import { rm } from "node:fs/promises";
import { join } from "node:path";

import type { Assignment, Outcome, StreamAnswer, Usage } from "@coppice/contract";
import type { Logger, RunId } from "@coppice/core";

import type { ApiClient, LeasedAttempt } from "./api-client.ts";
import { type AttemptEnd, failureOfStart, outcomeOf, type StopKind } from "./attempt-outcome.ts";
import { AttemptStream } from "./attempt-stream.ts";
import type { BundleCache } from "./bundle-cache.ts";
import { type AllowedEnv, childEnv, grantedEnv, type HostEnv } from "./child-env.ts";
import { type ChildPool, type ChildSpec, type PooledChild, UnloadableError } from "./child-pool.ts";
import type { AbortWord, ChildAttempt, FromChild } from "./child-wire.ts";
import { withinMs } from "./deadline.ts";
import type { DevicePeaks, DeviceSampler } from "./device-sampler.ts";
import type { UsageSampler } from "./process-usage.ts";
import type { SlotGrant } from "./slots.ts";
import { Transfers, untilAnswered } from "./transfers.ts";

export interface AttemptRooms {
  readonly api: ApiClient;
  readonly pool: ChildPool;
  readonly bundles: BundleCache;
  readonly usage: UsageSampler;
  readonly deviceUse: DeviceSampler;
  readonly allowEnv: readonly AllowedEnv[];
  readonly hostEnv: HostEnv;
  readonly leaseMs: () => number;
  readonly logger: Logger;
}

export interface AttemptResult {
  /** undefined: nothing may be reported. */
  readonly outcome: Outcome | undefined;
  readonly usage: Usage;
}

/** Of the lease, after which an exclusive step that was not confirmed is ended. */
const FENCE_RATIO = 0.8;
const FENCE_CHECK_MS = 200;
/** How long the finish waits for the last of the log. */
const STREAM_END_MS = 2000;
/** A longer timer would fire at once. */
const TIMER_MS_MAX = 2 ** 31 - 1;
const MB = 1024 * 1024;

export class ActiveAttempt {
  readonly identity: LeasedAttempt;
  readonly #assignment: Assignment;
  #devices: SlotGrant["devices"] = [];
  readonly #rooms: AttemptRooms;
  readonly #stream: AttemptStream;
  #startedAt = performance.now();
  readonly #unstarted = new AbortController();
  readonly #timers = new Set<NodeJS.Timeout>();
  #confirmedAt: number;
  #stop: StopKind | undefined;
  #child: PooledChild | undefined;
  #transfers: Transfers | undefined;
  #dir = "";
  #onEnd: ((end: AttemptEnd) => void) | undefined;
  #signAt = 0;
  #rssPeakBytes = 0;
  #cpuFirstMs: number | undefined;
  #cpuMs = 0;

  /** @param confirmedAt when the request that began the lease was sent, monotonic */
  constructor(assignment: Assignment, confirmedAt: number, rooms: AttemptRooms) {
    const { runId, step, item, attempt, lease } = assignment;
    this.identity = { runId: runId as RunId, step, item, attempt, lease };
    this.#assignment = assignment;
    this.#confirmedAt = confirmedAt;
    this.#rooms = rooms;
    this.#stream = new AttemptStream(
      { runId, step, item, attempt, lease },
      async (streamItem) => await rooms.api.stream.push(streamItem),
      (answer) => this.onStreamAnswer(answer, undefined),
    );
  }

  /** Fires when it is told to stop; who waits for its slots waits no longer. */
  get stopped(): AbortSignal {
    return this.#unstarted.signal;
  }

  /** @param devices the GPUs that are its own until it ends */
  async run(devices: SlotGrant["devices"]): Promise<AttemptResult> {
    this.#devices = devices;
    this.#startedAt = performance.now();
    const peaks = devices.map(({ uuid }) => this.#rooms.deviceUse.watch(uuid));
    this.#watchFence();
    const end = await this.#execute();
    for (const timer of this.#timers) clearTimeout(timer);
    for (const { uuid } of devices) this.#rooms.deviceUse.unwatch(uuid);
    const outcome = outcomeOf(this.#stop, end, this.#limits);
    if (outcome !== undefined) await withinMs(this.#stream.end(), STREAM_END_MS);
    return { outcome, usage: this.#usageOf(end, peaks) };
  }

  /** The first reason counts, but nothing softens `superseded` and `kill`. */
  stop(kind: StopKind): void {
    const isFinal = kind === "superseded" || kind === "kill";
    if (this.#stop !== undefined && !isFinal) return;
    this.#stop = kind;
    this.#unstarted.abort();
    const child = this.#child;
    if (child === undefined) return;
    if (isFinal || kind === "memory" || kind === "fence") return child.process.kill();
    child.process.send({ type: "abort", reason: kind satisfies AbortWord });
    this.#after(this.#assignment.spec.timeouts.graceMs, () => child.process.kill());
  }

  /** @param sentAt when the heartbeat was sent; undefined for other items */
  onStreamAnswer(answer: StreamAnswer, sentAt: number | undefined): void {
    if (answer.type === "superseded" || answer.type === "cancelled") this.stop(answer.type);
    else if (answer.type === "ok" && sentAt !== undefined) this.#confirmedAt = sentAt;
  }

  get #limits() {
    const { timeouts, memoryMb } = this.#assignment.spec;
    return { runMs: timeouts.runMs, heartbeatMs: timeouts.heartbeatMs, memoryMb };
  }

  async #execute(): Promise<AttemptEnd> {
    let child: PooledChild;
    try {
      child = await this.#acquireChild();
    } catch (error) {
      const failure = error instanceof UnloadableError ? error.failure : failureOfStart(error);
      return { type: "unstarted", failure };
    }
    this.#child = child;
    if (this.#stop !== undefined) {
      // Stopped in the very turn in which the child became ready.
      this.#child = undefined;
      this.#rooms.pool.release(child, undefined, false);
      return { type: "unstarted", failure: failureOfStart(new Error("stopped")) };
    }
    const end = await this.#runIn(child);
    this.#child = undefined;
    const isSpent =
      end.type !== "ended" ||
      end.end.leaks.length > 0 ||
      this.#stop !== undefined ||
      this.#assignment.spec.isolation === "fresh";
    if (end.type === "ended" && end.end.leaks.length > 0) {
      const { leaks } = end.end;
      const { runId, step, item, attempt } = this.identity;
      this.#rooms.logger.info(
        { runId, step, item, attempt, leaks },
        "a step left something behind in its child",
      );
    }
    this.#rooms.pool.release(child, end.type === "ended" ? end.end.rssBytes : undefined, isSpent);
    return end;
  }

  async #acquireChild(): Promise<PooledChild> {
    const { spec, project, bundleDigest } = this.#assignment;
    const { allowEnv, hostEnv, bundles, pool, api } = this.#rooms;
    const granted = grantedEnv(project.name, spec.env, allowEnv, hostEnv);
    const devices = this.#devices;
    const threads = spec.slots;
    const uuids = devices.map(({ uuid }) => uuid);
    const { memoryMb } = spec;
    const signal = this.#unstarted.signal;
    const childSpec: ChildSpec = {
      key: JSON.stringify([project.id, bundleDigest, uuids, granted, memoryMb ?? null, threads]),
      bundleDigest,
      memoryMb,
      env: ({ home, tmp }) => childEnv({ granted, host: hostEnv, home, tmp, devices, threads }),
      unpack: async (target) =>
        await bundles.unpackInto(target, bundleDigest, async (file) => {
          const headers = { "x-coppice-lease": this.identity.lease };
          await untilAnswered(async () => {
            const path = api.attemptPath(this.identity, "bundle");
            await api.http.getFile(path, file, undefined, headers, signal);
          }, signal);
        }),
    };
    const listener = {
      onMessage: (message: FromChild) => this.#onMessage(message),
      onText: (text: string) => this.#onText(text),
    };
    return await pool.acquire(childSpec, listener, spec.isolation === "fresh", signal);
  }

  async #runIn(child: PooledChild): Promise<AttemptEnd> {
    child.attempts += 1;
    const dir = join(child.dir, "attempts", String(child.attempts));
    this.#dir = dir;
    const ended = new Promise<AttemptEnd>((resolve) => {
      this.#onEnd = resolve;
      void child.process.exited.then((exit) => resolve({ type: "exited", exit }));
    });
    this.#watchLimits(child);
    child.process.send({ type: "run", attempt: this.#childAttempt(child.attempts, dir) });
    const end = await ended;
    this.#transfers?.end();
    if (end.type === "ended" && end.end.hasDir) void this.#removeDir(dir);
    if (child.process.pid !== undefined) this.#rooms.usage.unwatch(child.process.pid);
    return end;
  }

  /** Nobody waits for it; of an ended child it goes with the child's own folder. */
  async #removeDir(dir: string): Promise<void> {
    await rm(dir, { recursive: true, force: true }).catch((error: unknown) => {
      this.#rooms.logger.warn({ err: error, dir }, "an attempt's folder is left behind");
    });
  }

  #childAttempt(serial: number, dir: string): ChildAttempt {
    const { runId, pipeline, stepKey, item, itemName, attempt } = this.#assignment;
    const { params, inputs, seed, checkpoint, traceparent, spec } = this.#assignment;
    const what = { runId, pipeline, stepKey, item, itemName, attempt };
    return { serial, dir, ...what, params, inputs, seed, env: spec.env, checkpoint, traceparent };
  }

  #onText(text: string): void {
    this.#signAt = performance.now();
    this.#stream.log(text);
  }

  #onMessage(message: FromChild): void {
    if (message.type === "log") return this.#onText(message.text);
    if (message.type === "ready" || message.type === "unloadable" || message.type === "exit")
      return;
    const { runId, step, item, attempt } = this.identity;
    if (message.type === "breach" || message.serial !== this.#child?.attempts) {
      const code = "CPC_ISOLATION_BREACH";
      const fields = { runId, step, item, attempt, code, type: message.type };
      this.#rooms.logger.warn(fields, "a step's code used its context after its attempt's end");
      return;
    }
    this.#signAt = performance.now();
    switch (message.type) {
      case "heartbeat":
        return;
      case "metric": {
        const { key, step: metricStep, value, atMs } = message;
        return this.#stream.metric({ key, step: metricStep, value, atMs });
      }
      case "end":
        // Text of native code has its own pipes: one full turn of the loop reads what is there.
        setImmediate(() => setImmediate(() => this.#onEnd?.({ type: "ended", end: message })));
        return;
      case "upload":
      case "download":
      case "join": {
        const { process } = this.#child;
        this.#transfers ??= this.#openTransfers();
        void this.#transfers.answer(message).then((reply) => process.send(reply));
        return;
      }
    }
  }

  /** On first use: most attempts move no files. */
  #openTransfers(): Transfers {
    return new Transfers({
      api: this.#rooms.api,
      attempt: this.identity,
      dir: this.#dir,
      onAnswer: (answer) => this.onStreamAnswer(answer, undefined),
    });
  }

  #watchLimits(child: PooledChild): void {
    const { runMs, heartbeatMs, memoryMb } = this.#limits;
    if (runMs !== undefined) this.#after(runMs, () => this.stop("timeout"));
    if (heartbeatMs !== undefined) this.#watchSigns(heartbeatMs);
    const { pid } = child.process;
    if (pid === undefined) return;
    this.#rooms.usage.watch(pid, ({ rssBytes, cpuMs }) => {
      this.#rssPeakBytes = Math.max(this.#rssPeakBytes, rssBytes);
      this.#cpuFirstMs ??= cpuMs;
      this.#cpuMs = cpuMs - this.#cpuFirstMs;
      if (memoryMb !== undefined && rssBytes > memoryMb * MB) this.stop("memory");
    });
  }

  #watchSigns(heartbeatMs: number): void {
    this.#signAt = performance.now();
    const check = (): void => {
      const leftMs = this.#signAt + heartbeatMs - performance.now();
      if (leftMs <= 0) this.stop("heartbeat");
      else this.#after(leftMs, check);
    };
    this.#after(heartbeatMs, check);
  }

  /** By the monotonic clock: a worker that was suspended ends such a step when it wakes up. */
  #watchFence(): void {
    if (!this.#assignment.spec.exclusive) return;
    const check = (): void => {
      if (performance.now() - this.#confirmedAt > FENCE_RATIO * this.#rooms.leaseMs()) {
        this.stop("fence");
      } else {
        this.#after(FENCE_CHECK_MS, check);
      }
    };
    this.#after(FENCE_CHECK_MS, check);
  }

  #after(ms: number, action: () => void): void {
    const timer = setTimeout(
      () => {
        this.#timers.delete(timer);
        if (ms > TIMER_MS_MAX) this.#after(ms - TIMER_MS_MAX, action);
        else action();
      },
      Math.min(ms, TIMER_MS_MAX),
    );
    this.#timers.add(timer);
  }

  #usageOf(end: AttemptEnd, peaks: readonly DevicePeaks[]): Usage {
    const rssBytes = end.type === "ended" ? end.end.rssBytes : 0;
    const cpuMs = end.type === "ended" ? end.end.cpuMs : this.#cpuMs;
    return {
      wallMs: Math.round(performance.now() - this.#startedAt),
      cpuMs: Math.round(cpuMs),
      memoryPeakMb: Math.round(Math.max(this.#rssPeakBytes, rssBytes) / MB),
      ...(peaks.length === 0
        ? {}
        : {
            gpuPeakRatio: Math.max(...peaks.map(({ useRatio }) => useRatio)),
            gpuMemoryPeakMb: Math.max(...peaks.map(({ memoryUsedMb }) => memoryUsedMb)),
          }),
    };
  }
}
