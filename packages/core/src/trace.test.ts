import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { childTraceparent, newTraceparent, parseTraceparent } from "./trace.ts";

const bytes24 = fc.uint8Array({ minLength: 24, maxLength: 24 });

describe("traceparent", () => {
  test("a new header is read back with the ids that the random bytes name", () => {
    const random = Uint8Array.from({ length: 24 }, (_, index) => index + 1);
    const text = newTraceparent(random);
    expect(text).toBe("00-0102030405060708090a0b0c0d0e0f10-1112131415161718-01");
    expect(parseTraceparent(text)).toEqual({
      traceId: "0102030405060708090a0b0c0d0e0f10",
      spanId: "1112131415161718",
      isSampled: true,
    });
  });

  test("a child keeps trace and flags and takes a span of its own", () => {
    fc.assert(
      fc.property(bytes24, bytes24, fc.boolean(), (first, second, isSampled) => {
        const parent = newTraceparent(first, isSampled);
        const child = parseTraceparent(childTraceparent(parent, second));
        expect(child?.traceId).toBe(parseTraceparent(parent)?.traceId);
        expect(child?.isSampled).toBe(isSampled);
        expect(child?.spanId).toBe(newTraceparent(second).slice(36, 52));
      }),
    );
  });

  test("all-zero random bytes still make a valid header", () => {
    expect(parseTraceparent(newTraceparent(new Uint8Array(24)))).toBeDefined();
    expect(parseTraceparent(childTraceparent(undefined, new Uint8Array(24)))).toBeDefined();
  });

  test.each([
    [undefined],
    [""],
    ["00-00000000000000000000000000000000-1112131415161718-01"],
    ["00-0102030405060708090a0b0c0d0e0f10-0000000000000000-01"],
    ["ff-0102030405060708090a0b0c0d0e0f10-1112131415161718-01"],
    ["00-0102030405060708090a0b0c0d0e0f10-1112131415161718-01-more"],
    ["00-0102030405060708090A0B0C0D0E0F10-1112131415161718-01"],
    ["00-0102-1112131415161718-01"],
  ])("%s is not a valid header", (text) => {
    expect(parseTraceparent(text)).toBeUndefined();
  });

  test("a header of a later version is read by its first four fields", () => {
    const text = "01-0102030405060708090a0b0c0d0e0f10-1112131415161718-00-later";
    expect(parseTraceparent(text)?.isSampled).toBe(false);
  });
});
