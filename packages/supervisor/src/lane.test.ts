/** Batches, repetition, and one item's failure. */
import { CoppiceError, silentLogger } from "@coppice/core";
import { expect, test } from "vitest";

import { Lane } from "./lane.ts";

const laneOf = (send: (items: readonly string[]) => Promise<readonly string[]>, bytesMax = 1000) =>
  new Lane<string, string>({ name: "test", send, bytesMax, logger: silentLogger });

test("what comes while a request is under way goes into the next, in order", async () => {
  const batches: (readonly string[])[] = [];
  const lane = laneOf(async (items) => {
    batches.push(items);
    if (batches.length === 1)
      void Promise.all(["c", "d"].map(async (item) => await lane.push(item)));
    await new Promise((resolve) => setImmediate(resolve));
    return items;
  });
  const answers = await Promise.all(["a", "b"].map(async (item) => await lane.push(item)));
  expect(answers).toEqual(['"a"', '"b"']);
  await lane.push("e");
  expect(batches.map((batch) => batch.join())).toEqual(['"a","b"', '"c","d"', '"e"']);
});

test("a batch is split below its limit, and a single large item goes alone", async () => {
  const sizes: number[] = [];
  const lane = laneOf(async (items) => {
    sizes.push(items.length);
    return items;
  }, 100);
  const texts = ["x".repeat(40), "x".repeat(40), "x".repeat(40), "x".repeat(400)];
  await Promise.all(texts.map(async (text) => await lane.push(text)));
  expect(sizes).toEqual([2, 1, 1]);
});

test("without an answer the same request is sent again", async () => {
  let tries = 0;
  const lane = laneOf(async (items) => {
    tries += 1;
    if (tries < 3) throw new CoppiceError("CPC_SERVER_UNREACHABLE");
    return items;
  });
  expect(await lane.push("a")).toBe('"a"');
  expect(tries).toBe(3);
  expect(lane.isAway).toBe(false);
});

test("an item that the server can't read fails alone", async () => {
  const lane = laneOf(async (items) => {
    if (items.includes('"bad"')) throw new CoppiceError("CPC_INVALID_INPUT");
    return items;
  });
  const results = await Promise.allSettled(
    ["a", "bad", "c"].map(async (item) => await lane.push(item)),
  );
  expect(results.map(({ status }) => status)).toEqual(["fulfilled", "rejected", "fulfilled"]);
});

test("closing ends every wait", async () => {
  const lane = laneOf(async () => {
    throw new CoppiceError("CPC_SERVER_UNREACHABLE");
  });
  const waiting = lane.push("a");
  setImmediate(() => lane.close());
  await expect(waiting).rejects.toMatchObject({ code: "CPC_SERVER_UNREACHABLE" });
  await expect(lane.push("b")).rejects.toMatchObject({ code: "CPC_SERVER_UNREACHABLE" });
});
