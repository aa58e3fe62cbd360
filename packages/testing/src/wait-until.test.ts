/** Waiting says what it waited for, and why it did not come. */
import { expect, it } from "vitest";
import { waitUntil } from "./wait-until.ts";

it("returns the first truthy answer", async () => {
  let asked = 0;
  const answer = await waitUntil(() => (asked += 1) >= 3 && asked, { what: "three", everyMs: 1 });
  expect(answer).toBe(3);
});

it("names what it waited for and the last error when the time is over", async () => {
  const never = waitUntil(
    () => {
      throw new Error("not there");
    },
    { what: "the run to end", timeoutMs: 30, everyMs: 5 },
  );
  await expect(never).rejects.toThrow("Waited 30 ms in vain for the run to end: not there");
});
