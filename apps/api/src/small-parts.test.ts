import { randomBytes } from "node:crypto";
import { formatId, isCoppiceError, type JsonObject, type RunId, uuidV7 } from "@coppice/core";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { parseRange } from "./byte-range.ts";
import { onceATurn } from "./once-a-turn.ts";
import { createParamsChecker } from "./params-schema.ts";
import { joinLogs } from "./result-handlers.ts";
import { endingOf, rangeOf } from "./run-id.ts";
import { mintToken, parseToken } from "./token.ts";

const anyId = fc
  .tuple(fc.integer({ min: 0, max: 2 ** 48 - 1 }), fc.uint8Array({ minLength: 10, maxLength: 10 }))
  .map(([ms, random]) => uuidV7(ms, random) as RunId);

describe("a part of a run's id", () => {
  test("a beginning is a range that holds the id, and none that does not begin so", () => {
    fc.assert(
      fc.property(anyId, anyId, fc.integer({ min: 1, max: 26 }), (id, other, length) => {
        const beginning = formatId("run", id).slice(4, 4 + length);
        const range = rangeOf(beginning);
        expect(range !== undefined && range.low <= id && id <= range.high).toBe(true);
        const isInside = range !== undefined && range.low <= other && other <= range.high;
        expect(isInside).toBe(formatId("run", other).slice(4).startsWith(beginning));
      }),
    );
  });

  test("an end's digits are the id's own last digits", () => {
    fc.assert(
      fc.property(anyId, fc.integer({ min: 1, max: 26 }), (id, length) => {
        const ending = endingOf(formatId("run", id).slice(-length));
        expect(id.endsWith(ending)).toBe(true);
        expect(ending.replaceAll("-", "").length).toBe(Math.min(32, Math.floor((5 * length) / 4)));
      }),
    );
  });
});

test("a range is read as RFC 9110 says, and never beyond the end", () => {
  expect(parseRange("bytes=0-0", 10)).toEqual({ start: 0, end: 1 });
  expect(parseRange("bytes=5-", 10)).toEqual({ start: 5, end: 10 });
  expect(parseRange("bytes=-3", 10)).toEqual({ start: 7, end: 10 });
  expect(parseRange("bytes=8-99", 10)).toEqual({ start: 8, end: 10 });
  for (const header of ["bytes=10-", "bytes=5-4", "bytes=-0"]) {
    expect(parseRange(header, 10)).toBe("unsatisfiable");
  }
  for (const header of [undefined, "bytes=-", "bytes=1-2,4-5", "lines=1-2"]) {
    expect(parseRange(header, 10)).toBeUndefined();
  }
});

test("logs read in steps of any size are the log, whatever letters it has", () => {
  const chunk = fc.string({ unit: "grapheme", minLength: 1, maxLength: 20 });
  fc.assert(
    fc.property(
      fc.array(chunk, { minLength: 1, maxLength: 8 }),
      fc.integer({ min: 1, max: 4 }),
      (texts, rowsMax) => {
        let at = 0;
        const rows = texts.map((text) => {
          const row = { offset: at, sizeBytes: Buffer.byteLength(text), text };
          at += row.sizeBytes;
          return row;
        });
        let offset = 0;
        let read = "";
        while (offset < at) {
          const from = offset;
          const some = rows.filter((row) => row.offset + row.sizeBytes > from).slice(0, rowsMax);
          const part = joinLogs(some, offset, false);
          read += part.text;
          expect(part.nextOffset).toBeGreaterThan(offset);
          offset = part.nextOffset;
        }
        expect(read).toBe(texts.join(""));
      },
    ),
  );
});

test("a token is known by its shape and stands in nothing but its own text", () => {
  const token = mintToken();
  expect(parseToken(token.text)).toEqual(token);
  for (const text of [
    "",
    "cpc_",
    token.text.slice(1),
    `${token.text}x`,
    `cpc_${randomBytes(80).toString("hex")}`,
  ]) {
    expect(parseToken(text)).toBeUndefined();
  }
});

describe("parameters", () => {
  test("what zod accepts of an object, its JSON Schema accepts with the same defaults", async () => {
    const schema = z.object({
      seed: z.number().int().default(7),
      mode: z.enum(["a", "b"]).default("a"),
      sizes: z.array(z.number().min(1)).max(3).default([1]),
      nested: z.object({ x: z.number().default(1) }).default({ x: 2 }),
      maybe: z.string().min(2).optional(),
    });
    const json = z.toJSONSchema(schema, { io: "input" }) as JsonObject;
    const checker = createParamsChecker();
    const value = fc.record(
      {
        seed: fc.oneof(fc.integer(), fc.double({ noNaN: true, noDefaultInfinity: true })),
        mode: fc.constantFrom("a", "b", "c"),
        sizes: fc.array(fc.integer({ min: -1, max: 5 }), { maxLength: 5 }),
        nested: fc.record({ x: fc.oneof(fc.integer(), fc.string()) }, { requiredKeys: [] }),
        maybe: fc.string({ maxLength: 4 }),
      },
      { requiredKeys: [] },
    );
    await fc.assert(
      fc.asyncProperty(value, async (params) => {
        const direct = schema.safeParse(params);
        const checked = await checker
          .check("v", async () => json, params as never)
          .catch((error: unknown) => (isCoppiceError(error) ? error.code : error));
        expect(checked).toEqual(direct.success ? direct.data : "CPC_INVALID_PARAMS");
      }),
    );
  });
});

test("what is asked in one turn is looked up once, what is asked later again", async () => {
  const ask = onceATurn<number>();
  let looks = 0;
  const look = (): Promise<number> => Promise.resolve((looks += 1));
  expect(await Promise.all([ask("a", look), ask("a", look), ask("b", look)])).toEqual([1, 1, 2]);
  expect(await ask("a", look)).toBe(3);
});
