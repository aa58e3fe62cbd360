import { CoppiceError } from "@coppice/core";
import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { createLogger, type LogLevel } from "./logger.ts";
import { scrubText } from "./scrub.ts";

const CANARY = "c4n4ryV4lu3";

const capture = (level: LogLevel = "debug") => {
  const lines: string[] = [];
  const destination = { write: (line: string) => lines.push(line) };
  const logger = createLogger({ name: "test", level, destination });
  return { logger, lines, last: () => JSON.parse(lines.at(-1) ?? "null") };
};

describe("the logger", () => {
  test("writes one JSON object a line with level, ISO time, name, fields and message", () => {
    const { logger, lines, last } = capture();
    logger.child({ runId: "r1", step: 0 }).info({ step: 2 }, "step started");
    expect(lines).toHaveLength(1);
    expect(last()).toMatchObject({ level: "info", name: "test", runId: "r1", step: 2 });
    expect(last().msg).toBe("step started");
    expect(new Date(last().time).toISOString()).toBe(last().time);
    expect(lines[0]?.match(/"step"/g)).toHaveLength(1);
  });

  test("writes nothing below its level", () => {
    const { logger, lines } = capture("warn");
    logger.info({}, "quiet");
    logger.warn({}, "loud");
    expect(lines).toHaveLength(1);
  });

  test("writes an error with code, message, stack, data and the chain of causes", () => {
    const { logger, last } = capture();
    const root = new TypeError("the root");
    const err = new CoppiceError("CPC_DISK_FULL", { detail: "x", data: { a: 1 }, cause: root });
    logger.error({ err }, "failed");
    expect(last().err).toMatchObject({
      type: "CoppiceError",
      code: "CPC_DISK_FULL",
      message: err.message,
      data: { a: 1 },
      cause: { type: "TypeError", message: "the root" },
    });
    expect(last().err.stack).toContain("logger.test.ts");
  });

  test("survives circles, getters that throw, depth, bytes and bigints", () => {
    const { logger, last } = capture();
    const circle: Record<string, unknown> = { big: 10n, bytes: new Uint8Array(3) };
    circle["self"] = circle;
    const trap = {
      get boom(): string {
        throw new Error("no");
      },
    };
    let deep: unknown = 1;
    for (let level = 0; level < 50; level += 1) deep = { deep };
    logger.info({ circle, trap, deep, at: new Date(0) }, "odd");
    expect(last().circle).toEqual({ big: "10", bytes: "[3 bytes]", self: "[circular]" });
    expect(last().trap).toBe("[unreadable]");
    expect(last().at).toBe("1970-01-01T00:00:00.000Z");
    logger.info(trap, "odd at the top");
    expect(last().msg).toBe("odd at the top");
  });

  const places: readonly [string, Record<string, unknown>][] = [
    ["a token field", { token: CANARY }],
    ["a deep secret field", { a: [{ b: { clientSecret: CANARY } }] }],
    ["an authorization header", { headers: { Authorization: `Bearer ${CANARY}` } }],
    ["a cookie header", { req: { headers: { "set-cookie": [`s=${CANARY}`] } } }],
    ["a lease token", { lease_token: CANARY }],
    ["one of our tokens as a value", { note: `got cpc_wrk_${CANARY} from there` }],
    ["one of our tokens as a key", { seen: { [`cpc_${CANARY}`]: 1 } }],
    ["a postgres URL", { at: `postgres://coppice:${CANARY}@127.0.0.1:5432/db` }],
    ["a postgres URL with an odd password", { at: `postgresql://u:a/b "c@d${CANARY}@h/db` }],
    ["a redis URL", { at: `connect redis://:${CANARY}@127.0.0.1:6379 failed` }],
    ["a URL object", { url: new URL(`https://user:${CANARY}@example.org/`) }],
    ["a URL with a token as user", { url: `https://${CANARY}@example.org/` }],
    ["a query string", { url: `/sign-in?code=${CANARY}&x=1` }],
    ["a signed URL", { url: `http://s3/x?X-Amz-Credential=k&X-Amz-Signature=${CANARY}` }],
    ["a keyword connection text", { at: `host=h user=u password=${CANARY} port=1` }],
    ["JSON inside a string", { body: JSON.stringify({ accessToken: CANARY }) }],
    ["an error's message and stack", { err: new Error(`bad cpc_${CANARY}`) }],
    [
      "an error's cause",
      { err: new Error("x", { cause: new Error(`redis://u:${CANARY}@h: refused`) }) },
    ],
    ["an aggregate error", { err: new AggregateError([new Error(`cpc_${CANARY}`)], "many") }],
    ["an error's data", { err: new CoppiceError("CPC_INTERNAL", { data: { token: CANARY } }) }],
    ["a map", { map: new Map([["x", `cpc_${CANARY}`]]) }],
  ];
  test.each(places)("never writes a secret that stands in %s", (_, fields) => {
    const { logger, lines } = capture();
    logger.info(fields, "message");
    logger.child(fields).info({}, "message");
    logger.info({ nested: { deeper: fields } }, "message");
    expect(lines).toHaveLength(3);
    expect(lines.join("")).not.toContain(CANARY);
  });

  test("never writes a secret that stands in the message", () => {
    const { logger, lines } = capture();
    logger.info({}, `token cpc_${CANARY} and postgres://u:${CANARY}@h/db and Bearer ${CANARY}`);
    expect(lines.join("")).not.toContain(CANARY);
  });

  test("leaves ordinary text alone", () => {
    for (const text of [
      "CPC_INVALID_INPUT: expected a number",
      "GET http://127.0.0.1:4600/v1/runs?limit=10",
      "postgres://127.0.0.1:5432/coppice",
      "s3://bucket/prefix/@scope",
      "@coppice/core 1.0.0, exit code=1",
    ]) {
      expect(scrubText(text)).toBe(text);
    }
    expect(scrubText("postgres://me:pw@h:1/db")).toBe("postgres://me:[redacted]@h:1/db");
  });

  test("no password of a database URL gets through, whatever stands around it", () => {
    const password = fc.string({ minLength: 8 }).filter((text) => !/[\n@]/.test(text));
    const around = fc.string();
    fc.assert(
      fc.property(password, around, around, (pw, before, after) => {
        const secret = `<${pw}>`;
        const scrubbed = scrubText(`${before}postgres://u:${secret}@h/${after}`);
        expect(scrubbed).not.toContain(secret);
      }),
    );
  });

  test.each(["redis://:", "redis://a:b@", "cpc_", "://a", "bearer ", '"token', '"', "token="])(
    "a line of nothing but %j costs little",
    (part) => {
      const startedMs = performance.now();
      scrubText(part.repeat(Math.ceil(131_072 / part.length)));
      expect(performance.now() - startedMs).toBeLessThan(400);
    },
  );

  test("a huge text is cut and costs little", () => {
    const startedAtMs = performance.now();
    const text = scrubText("postgres://:".repeat(500_000));
    expect(text.length).toBeLessThan(40_000);
    expect(performance.now() - startedAtMs).toBeLessThan(2000);
  });
});
