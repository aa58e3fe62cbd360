import { describe, expect, it } from "vitest";
import { describeAddress, DoorbellAddress, queueName } from "./address.ts";

describe("a class's queue name", () => {
  it("keeps what is plain", () => {
    expect(["cpu", "gpu1", "gpu1.label=value"].map(queueName)).toEqual([
      "cpu",
      "gpu1",
      "gpu1.label=value",
    ]);
  });

  it("is one for one class, without colons, and short", () => {
    const keys = ["a:b", "a_b", "a__b", "A:B", "", "é", "😀", "x".repeat(300)];
    keys.push(`${"x".repeat(300)}y`, queueName("x".repeat(300)), "a_3a_b");
    const names = keys.map(queueName);
    expect(new Set(names).size).toBe(keys.length);
    for (const name of names) expect(name).toMatch(/^[A-Za-z0-9.,=_-]{1,48}$/);
  });
});

describe("a doorbell's address", () => {
  it("is shown without its credential", () => {
    const address = { kind: "redis", url: "redis://u:secret@127.0.0.1:6379/2", prefix: "p" };
    expect(describeAddress(DoorbellAddress.parse(address))).toBe("redis://127.0.0.1:6379/2");
  });

  it("is refused where the scheme or the prefix is another", () => {
    for (const address of [
      { kind: "redis", url: "http://127.0.0.1" },
      { kind: "redis", url: "redis://127.0.0.1", prefix: "a:*" },
      { kind: "postgres", url: "redis://127.0.0.1" },
      { kind: "nats", url: "nats://127.0.0.1" },
    ]) {
      expect(DoorbellAddress.safeParse(address).success).toBe(false);
    }
  });
});
