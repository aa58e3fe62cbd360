import { describe, expect, it } from "vitest";
import { createSlots, reserveSlot, type Slot } from "./slots.ts";

const never = new AbortController().signal;

describe("slots", () => {
  it("are given to those who wait, first come first served", async () => {
    const slots = createSlots(1);
    const first = slots.tryReserve("a");
    const order: string[] = [];
    const wait = async (name: string): Promise<void> => {
      const slot = await reserveSlot(slots, name, never);
      order.push(name);
      slot?.release();
    };
    const waiting = Promise.all(["a", "b", "c"].map(wait));
    first?.release();
    await waiting;
    expect(order).toEqual(["a", "b", "c"]);
  });

  it("count a slot once that is given back twice", () => {
    const slots = createSlots(2);
    const taken = [slots.tryReserve("a"), slots.tryReserve("a")];
    taken[0]?.release();
    taken[0]?.release();
    expect(slots.free()).toBe(1);
    expect([slots.tryReserve("a"), slots.tryReserve("a")].map(Boolean)).toEqual([true, false]);
  });

  it("can become fewer and more while taken", async () => {
    const slots = createSlots(3);
    const taken = [1, 2, 3].map(() => slots.tryReserve("a"));
    slots.resize(1);
    taken[0]?.release();
    taken[1]?.release();
    expect([slots.free(), slots.tryReserve("a")]).toEqual([0, undefined]);
    const waiting = reserveSlot(slots, "a", never);
    slots.resize(2);
    expect(await waiting).toBeDefined();
  });

  it("are not waited for any longer once the signal fires", async () => {
    const slots = createSlots(0);
    const stop = new AbortController();
    const waiting: Promise<Slot | undefined> = reserveSlot(slots, "a", stop.signal);
    stop.abort();
    expect(await waiting).toBeUndefined();
    expect(await reserveSlot(slots, "a", stop.signal)).toBeUndefined();
  });
});
