/**
 * Slots and devices of this worker, and who holds them.
 *
 * What must stay true: a device belongs to one attempt at a time; slots in use never exceed the
 * worker's slots, save that a step which asks for more than the worker has runs alone; who waits
 * longest is served first among those that fit, and nobody who fits late is overtaken for ever.
 */
import type { Device } from "@coppice/contract";

export interface SlotNeed {
  readonly slots: number;
  readonly gpus: number;
}

/** What an attempt holds until it gives it back. */
export interface SlotGrant {
  readonly slots: number;
  readonly devices: readonly Device[];
  /** The second call does nothing. */
  release(): void;
}

interface Waiter {
  readonly need: SlotNeed;
  readonly sinceMs: number;
  readonly resolve: (grant: SlotGrant) => void;
}

/** Who has waited this long is overtaken by nobody. */
const OVERTAKE_MS = 500;
/** How long finishes may hand on slots before one goes to whoever waits for a bell. */
const YIELD_AFTER_MS = 1000;

export class SlotGate {
  readonly total: number;
  readonly devices: readonly Device[];
  #free: number;
  #freeDevices: Device[];
  readonly #waiters: Waiter[] = [];
  readonly #listeners = new Set<() => void>();
  #freedAtMs = performance.now();
  #isClosed = false;

  constructor(total: number, devices: readonly Device[]) {
    this.total = total;
    this.devices = devices;
    this.#free = total;
    this.#freeDevices = [...devices];
  }

  get freeSlots(): number {
    return this.#free;
  }

  get freeGpus(): number {
    return this.#freeDevices.length;
  }

  /**
   * Whether an ending attempt should give its slot back instead of offering it to the server: when
   * somebody waits, and no slot became free for a while as each finish started a next attempt.
   */
  get shouldYield(): boolean {
    if (this.#waiters.length === 0 && this.#listeners.size === 0) return false;
    return performance.now() - this.#freedAtMs > YIELD_AFTER_MS;
  }

  /** For bells: one slot and as many devices as the class needs, at once or not at all. */
  tryReserve(need: SlotNeed): SlotGrant | undefined {
    if (this.#isClosed || this.#waiters.length > 0 || !this.#fits(need)) return undefined;
    return this.#take(need);
  }

  /** Calls once, the next time that something became free. Returns how to stop listening. */
  onFree(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Waits; undefined when the signal fired first. */
  async acquire(need: SlotNeed, signal: AbortSignal): Promise<SlotGrant | undefined> {
    if (signal.aborted) return undefined;
    return await new Promise<SlotGrant | undefined>((resolve) => {
      const onAbort = (): void => {
        const index = this.#waiters.indexOf(waiter);
        if (index === -1) return;
        this.#waiters.splice(index, 1);
        resolve(undefined);
        this.#serve();
      };
      const waiter: Waiter = {
        need: this.#capped(need),
        sinceMs: performance.now(),
        resolve: (grant) => {
          signal.removeEventListener("abort", onAbort);
          resolve(grant);
        },
      };
      signal.addEventListener("abort", onAbort, { once: true });
      this.#waiters.push(waiter);
      this.#serve();
    });
  }

  /** No bell gets a slot any more; what runs goes on. */
  close(): void {
    this.#isClosed = true;
  }

  #capped({ slots, gpus }: SlotNeed): SlotNeed {
    return { slots: Math.min(slots, this.total), gpus: Math.min(gpus, this.devices.length) };
  }

  #fits({ slots, gpus }: SlotNeed): boolean {
    return slots <= this.#free && gpus <= this.#freeDevices.length;
  }

  #take({ slots, gpus }: SlotNeed): SlotGrant {
    this.#free -= slots;
    const devices = this.#freeDevices.splice(0, gpus);
    let isHeld = true;
    return {
      slots,
      devices,
      release: () => {
        if (!isHeld) return;
        isHeld = false;
        this.#free += slots;
        this.#freedAtMs = performance.now();
        // Lowest index first, so that a returning class meets its warm child again.
        this.#freeDevices = [...this.#freeDevices, ...devices].toSorted(
          (a, b) => a.index - b.index,
        );
        this.#serve();
      },
    };
  }

  #serve(): void {
    for (let index = 0; index < this.#waiters.length; ) {
      const waiter = this.#waiters[index];
      if (waiter === undefined) break;
      if (this.#fits(waiter.need)) {
        this.#waiters.splice(index, 1);
        waiter.resolve(this.#take(waiter.need));
      } else if (performance.now() - waiter.sinceMs > OVERTAKE_MS) {
        return;
      } else {
        index += 1;
      }
    }
    if (this.#free > 0 && this.#waiters.length === 0) this.#announce();
  }

  /** Each listener is called once and registers again behind the others: classes take turns. */
  #announce(): void {
    for (const listener of Array.from(this.#listeners)) {
      if (this.#free <= 0) return;
      this.#listeners.delete(listener);
      listener();
    }
  }
}
