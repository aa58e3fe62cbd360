/** Who gets a slot, and when. */
import { expect, test } from "vitest";

import { SlotGate } from "./slots.ts";
import { needOfClass } from "./work-loop.ts";

const forever = new AbortController().signal;
const devices = [0, 1].map((index) => ({ index, uuid: `GPU-${index}`, name: "card", memoryMb: 1 }));

test("slots and devices are given once and come back once", () => {
  const gate = new SlotGate(2, devices);
  const first = gate.tryReserve({ slots: 1, gpus: 1 });
  const second = gate.tryReserve({ slots: 1, gpus: 1 });
  expect(first?.devices[0]?.uuid).toBe("GPU-0");
  expect(second?.devices[0]?.uuid).toBe("GPU-1");
  expect(gate.tryReserve({ slots: 1, gpus: 0 })).toBeUndefined();
  first?.release();
  first?.release();
  expect(gate.freeSlots).toBe(1);
  expect(gate.tryReserve({ slots: 1, gpus: 1 })?.devices[0]?.uuid).toBe("GPU-0");
});

test("a step that asks for more than the worker has runs alone", async () => {
  const gate = new SlotGate(2, devices);
  const grant = await gate.acquire({ slots: 5, gpus: 7 }, forever);
  expect(grant?.slots).toBe(2);
  expect(grant?.devices).toHaveLength(2);
  expect(gate.freeSlots).toBe(0);
});

test("a small need may pass a large one that does not fit yet; then comes the large", async () => {
  const gate = new SlotGate(2, []);
  const held = gate.tryReserve({ slots: 1, gpus: 0 });
  const order: string[] = [];
  const large = gate.acquire({ slots: 2, gpus: 0 }, forever).then((grant) => {
    order.push("large");
    return grant;
  });
  const small = await gate.acquire({ slots: 1, gpus: 0 }, forever);
  order.push("small");
  small?.release();
  expect(gate.tryReserve({ slots: 1, gpus: 0 })).toBeUndefined();
  held?.release();
  await large;
  expect(order).toEqual(["small", "large"]);
});

test("a wait ends with its signal and leaves nothing behind", async () => {
  const gate = new SlotGate(1, []);
  const held = gate.tryReserve({ slots: 1, gpus: 0 });
  const stop = new AbortController();
  const waiting = gate.acquire({ slots: 1, gpus: 0 }, stop.signal);
  stop.abort();
  expect(await waiting).toBeUndefined();
  held?.release();
  expect(gate.tryReserve({ slots: 1, gpus: 0 })).toBeDefined();
});

test("listeners are called in turn, once, while there is something free", () => {
  const gate = new SlotGate(1, []);
  const held = gate.tryReserve({ slots: 1, gpus: 0 });
  const calls: string[] = [];
  gate.onFree(() => {
    calls.push("a");
    gate.tryReserve({ slots: 1, gpus: 0 });
  });
  gate.onFree(() => calls.push("b"));
  held?.release();
  expect(calls).toEqual(["a"]);
});

test("after the close no bell gets a slot", () => {
  const gate = new SlotGate(1, []);
  gate.close();
  expect(gate.tryReserve({ slots: 1, gpus: 0 })).toBeUndefined();
});

test.each([
  ["cpu", 0],
  ["gpu2,model=h100", 2],
  ["cpu,zone=gpu1", 0],
])("the class %s needs %i devices", (classKey, gpus) => {
  expect(needOfClass(classKey)).toEqual({ slots: 1, gpus });
});
