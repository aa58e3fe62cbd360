/**
 * A worker's inside, put together: registration, bells, slots, children, heartbeats, and the end.
 *
 * What must stay true: `drain` and `kill` end by their own deadlines whatever the server, the
 * doorbell or the steps do; no child outlives them.
 */
import { readdir, rm } from "node:fs/promises";
import { hostname } from "node:os";
import { join } from "node:path";

import { type Device, PROTOCOL_VERSION, type RegisterReply } from "@coppice/contract";
import { type Logger, type Metrics, silentLogger, silentMetrics } from "@coppice/core";

import { ApiClient } from "./api-client.ts";
import type { AttemptRooms } from "./attempt.ts";
import type { BellHandlers, BellListener, BellSource } from "./bell-source.ts";
import { BundleCache, type UnpackBundle } from "./bundle-cache.ts";
import type { AllowedEnv, HostEnv } from "./child-env.ts";
import { ChildPool } from "./child-pool.ts";
import { withinMs } from "./deadline.ts";
import { DeviceSampler } from "./device-sampler.ts";
import { listDevices } from "./devices.ts";
import { Heartbeats } from "./heartbeats.ts";
import { Outbox } from "./outbox.ts";
import { UsageSampler } from "./process-usage.ts";
import { SlotGate } from "./slots.ts";
import { needOfClass, WorkLoop } from "./work-loop.ts";

export interface SupervisorOptions {
  readonly api: { readonly server: string; readonly token: string };
  readonly bells: BellSource;
  readonly name: string;
  readonly slots: number;
  readonly labels?: Readonly<Record<string, string>>;
  /** Everything of this worker on disk: bundles, children, outcomes that wait. */
  readonly dir: string;
  readonly unpackBundle: UnpackBundle;
  /** GPUs; found by `nvidia-smi` unless given. */
  readonly devices?: readonly Device[];
  readonly allowEnv?: readonly AllowedEnv[];
  /** The worker's own environment: PATH and what `allowEnv` names are taken from it. */
  readonly hostEnv?: HostEnv;
  /** A file; packages outside the bundle resolve as if it imported them. */
  readonly externalsFrom?: string;
  readonly version?: string;
  readonly host?: string;
  readonly logger?: Logger;
  readonly metrics?: Metrics;
  /** How long attempts may go on after `drain`. @defaultValue 30_000 */
  readonly drainMs?: number;
  /** From the drain's abort signal to the kill. @defaultValue 10_000 */
  readonly drainGraceMs?: number;
  readonly signal?: AbortSignal;
}

export interface SupervisorStats {
  readonly workerId: string;
  readonly isDraining: boolean;
  readonly slots: number;
  readonly freeSlots: number;
  readonly freeGpus: number;
  readonly attempts: number;
  readonly children: { readonly idle: number; readonly all: number; readonly started: number };
  /** Since the server last answered. */
  readonly silentMs: number;
}

export interface Supervisor {
  readonly workerId: string;
  /** Takes no bell, finishes, then releases what is left; ends by its deadline. */
  drain(): Promise<void>;
  /** Ends every child at once and reports nothing. */
  kill(): Promise<void>;
  stats(): SupervisorStats;
}

const BELLS_CLOSE_MS = 2000;
const KILL_MS = 2000;
const REPORT_MS = 5000;
const TELL_MS = 1000;

export const startSupervisor = async (options: SupervisorOptions): Promise<Supervisor> => {
  const logger = options.logger ?? silentLogger;
  const hostEnv = options.hostEnv ?? {};
  const devices = options.devices ?? (await listDevices(hostEnv["PATH"], logger));
  const house = new House(options, devices, logger);
  await house.open();
  return house;
};

/** Only this file sees it as more than a `Supervisor`. */
class House implements Supervisor {
  readonly #options: SupervisorOptions;
  readonly #logger: Logger;
  readonly #gate: SlotGate;
  readonly #api: ApiClient;
  readonly #pool: ChildPool;
  readonly #usage = new UsageSampler();
  readonly #deviceUse: DeviceSampler;
  readonly #loop: WorkLoop;
  readonly #heartbeats: Heartbeats;
  #registered: RegisterReply | undefined;
  #listener: BellListener | undefined;
  #isDraining = false;
  #ending: Promise<void> | undefined;

  constructor(options: SupervisorOptions, devices: readonly Device[], logger: Logger) {
    this.#options = options;
    this.#logger = logger;
    const { dir, slots, allowEnv = [], hostEnv = {}, metrics = silentMetrics } = options;
    this.#gate = new SlotGate(slots, devices);
    this.#deviceUse = new DeviceSampler(hostEnv["PATH"]);
    this.#api = new ApiClient({
      ...options.api,
      logger,
      registration: () => this.#registration(),
      onRegistered: (reply) => this.#onRegistered(reply),
    });
    this.#pool = new ChildPool({
      dir: join(dir, "children", String(process.pid)),
      idleMax: slots,
      externalsFrom: options.externalsFrom,
      logger,
    });
    const rooms: AttemptRooms = {
      api: this.#api,
      pool: this.#pool,
      bundles: new BundleCache(join(dir, "bundles"), options.unpackBundle),
      usage: this.#usage,
      deviceUse: this.#deviceUse,
      allowEnv,
      hostEnv,
      leaseMs: () => this.#registered?.leaseMs ?? 15_000,
      logger,
    };
    const outbox = new Outbox(join(dir, "outbox"), logger);
    this.#loop = new WorkLoop({ rooms, gate: this.#gate, outbox, metrics });
    this.#heartbeats = new Heartbeats({
      push: async (item) => await this.#api.stream.push(item),
      live: () => this.#loop.live,
      worker: () => ({
        type: "worker",
        freeSlots: this.#gate.freeSlots,
        freeGpus: this.#gate.freeGpus,
        isDraining: this.#isDraining,
      }),
      onClasses: (classKeys) => this.#onClasses(classKeys),
      logger,
    });
  }

  get workerId(): string {
    return this.#api.workerId;
  }

  async open(): Promise<void> {
    try {
      await removeDeadChildren(join(this.#options.dir, "children"));
      await this.#api.register(this.#options.signal);
      await this.#loop.sendKept();
      const { doorbell, classes } = this.#registered ?? never();
      this.#listener = await this.#options.bells.listen(doorbell, classes, this.#handlers());
      this.#heartbeats.beat();
    } catch (error) {
      await this.kill();
      throw error;
    }
  }

  async drain(): Promise<void> {
    this.#ending ??= this.#drain();
    await this.#ending;
  }

  async kill(): Promise<void> {
    this.#isDraining = true;
    this.#loop.stopAll("kill");
    await this.#close(0);
  }

  stats(): SupervisorStats {
    return {
      workerId: this.workerId,
      isDraining: this.#isDraining,
      slots: this.#gate.total,
      freeSlots: this.#gate.freeSlots,
      freeGpus: this.#gate.freeGpus,
      attempts: this.#loop.live.length,
      children: this.#pool.counts,
      silentMs: Math.round(this.#api.silentMs),
    };
  }

  async #drain(): Promise<void> {
    const { drainMs = 30_000, drainGraceMs = 10_000 } = this.#options;
    this.#isDraining = true;
    this.#gate.close();
    this.#loop.startDraining();
    this.#logger.info({ attempts: this.#loop.live.length }, "draining, no further work is taken");
    const told = this.#heartbeats.announce();
    await withinMs(this.#listener?.close(BELLS_CLOSE_MS), BELLS_CLOSE_MS);
    if (!(await withinMs(this.#loop.idle(), drainMs))) {
      const attempts = this.#loop.live.length;
      this.#logger.warn({ attempts }, "attempts are told to save what they have");
      this.#loop.stopAll("drain");
      await withinMs(this.#loop.idle(), drainGraceMs);
    }
    await withinMs(told, TELL_MS);
    await this.#close(REPORT_MS);
  }

  /** @param reportMs how long outcomes may still be on their way to the server */
  async #close(reportMs: number): Promise<void> {
    this.#gate.close();
    await this.#pool.close();
    await withinMs(this.#loop.idle(), reportMs);
    this.#heartbeats.stop();
    this.#api.close();
    this.#usage.close();
    this.#deviceUse.close();
    // With the lanes closed, what was not answered is being written to disk.
    await withinMs(this.#loop.idle(), KILL_MS);
    await withinMs(this.#listener?.close(KILL_MS), KILL_MS);
  }

  #handlers(): BellHandlers {
    return {
      tryReserve: (classKey) => this.#gate.tryReserve(needOfClass(classKey)),
      onFree: (listener) => this.#gate.onFree(listener),
      onBell: async (bell, grant) => await this.#loop.onBell(bell, grant),
    };
  }

  #registration() {
    const { name, slots, labels = {}, version = "0", host = hostname() } = this.#options;
    const devices = [...this.#gate.devices];
    const clockMs = Date.now();
    return { protocol: PROTOCOL_VERSION, name, host, version, labels, slots, devices, clockMs };
  }

  #onRegistered(reply: RegisterReply): void {
    const before = this.#registered;
    this.#registered = reply;
    const { workerId, clockSkewMs, classes } = reply;
    this.#logger.info({ workerId, clockSkewMs, classes }, "registered with the server");
    this.#heartbeats.start(reply.heartbeatMs);
    if (before === undefined) return;
    if (JSON.stringify(before.doorbell) === JSON.stringify(reply.doorbell)) {
      this.#onClasses(classes);
    } else {
      void this.#moveDoorbell(reply);
    }
  }

  #onClasses(classKeys: readonly string[]): void {
    this.#listener?.setClasses(classKeys).catch((error: unknown) => {
      this.#logger.warn({ err: error, classKeys }, "the classes to listen to could not be changed");
    });
  }

  async #moveDoorbell({ doorbell, classes }: RegisterReply): Promise<void> {
    if (this.#isDraining) return;
    const before = this.#listener;
    try {
      this.#listener = await this.#options.bells.listen(doorbell, classes, this.#handlers());
      await before?.close(BELLS_CLOSE_MS);
    } catch (error) {
      this.#logger.warn({ err: error }, "the doorbell moved and can't be listened to");
    }
  }
}

/** Folders of children whose supervisor is gone, and with it they. */
const removeDeadChildren = async (dir: string): Promise<void> => {
  for (const name of await readdir(dir).catch(() => [])) {
    if (name !== String(process.pid) && isAlive(Number(name))) continue;
    await rm(join(dir, name), { recursive: true, force: true });
  }
};

const isAlive = (pid: number): boolean => {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
};

const never = (): never => {
  throw new Error("expected a registration before its use");
};
