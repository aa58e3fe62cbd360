/**
 * Slots as the listener sees them. A bell is taken from the queue only with a slot in hand, so a
 * bell never waits inside a full worker while another worker is idle. The slot then belongs to the
 * attempt, which gives it back when it ends.
 */
export interface Slot {
  /** Gives it back; the second call does nothing. */
  release(): void;
}

export interface SlotGate {
  /** One slot for an attempt of this class, or undefined while there is none. */
  tryReserve(classKey: string): Slot | undefined;
  /** Calls once, the next time that a slot may have become free. Returns how to stop listening. */
  onFree(listener: () => void): () => void;
}

export interface Slots extends SlotGate {
  readonly capacity: number;
  free(): number;
  /** Fewer than are taken: nothing is taken away, none is given out until enough came back. */
  resize(capacity: number): void;
}

/** The plain gate: so many slots, the same for every class, first waiter first. */
export const createSlots = (initialCapacity: number): Slots => {
  let capacity = initialCapacity;
  let taken = 0;
  const listeners = new Set<() => void>();
  const announce = (): void => {
    // Each listener is called once and may register again for the next time: behind the others.
    const waiting = Array.from(listeners);
    for (const listener of waiting) {
      if (taken >= capacity) return;
      listeners.delete(listener);
      listener();
    }
  };
  return {
    get capacity() {
      return capacity;
    },
    free: () => Math.max(0, capacity - taken),
    tryReserve: () => {
      if (taken >= capacity) return undefined;
      taken += 1;
      let isHeld = true;
      return {
        release: () => {
          if (!isHeld) return;
          isHeld = false;
          taken -= 1;
          announce();
        },
      };
    },
    onFree: (listener) => {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    resize: (next) => {
      capacity = next;
      announce();
    },
  };
};

/** Waits for a slot; undefined when the signal fired first. */
export const reserveSlot = async (
  gate: SlotGate,
  classKey: string,
  signal: AbortSignal,
): Promise<Slot | undefined> => {
  for (;;) {
    if (signal.aborted) return undefined;
    const slot = gate.tryReserve(classKey);
    if (slot !== undefined) return slot;
    await new Promise<void>((resolve) => {
      const stop = gate.onFree(() => {
        signal.removeEventListener("abort", aborted);
        resolve();
      });
      const aborted = (): void => {
        stop();
        resolve();
      };
      signal.addEventListener("abort", aborted, { once: true });
    });
  }
};
