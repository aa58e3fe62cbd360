import { type JsonValue, valueAt } from "@coppice/core";
import { describe, expect, test } from "vitest";

import type { ValueSource, WhenExpression } from "./ir.ts";
import { evaluateWhen, whenSources } from "./when.ts";

const literal = (value: JsonValue): ValueSource =>
  ({ from: "literal", value }) as Extract<ValueSource, { from: "literal" }>;
const param = (...path: string[]): ValueSource => ({ from: "param", path });
const spilled = { $spilled: { sha256: "a".repeat(64), sizeBytes: 9 } };
const params = {
  score: 0.9,
  name: "b",
  deep: { b: [1, { y: 2 }], a: null },
  none: null,
  big: spilled,
};

const resolve = (source: ValueSource): JsonValue | undefined => {
  if (source.from === "literal") return source.value;
  return source.from === "param" ? valueAt(params, source.path) : undefined;
};
const evaluate = (expression: WhenExpression): boolean => evaluateWhen(expression, resolve);

const binary = (
  op: "eq" | "ne" | "lt" | "le" | "gt" | "ge" | "in",
  left: ValueSource,
  value: JsonValue,
): WhenExpression => ({ op, left, right: literal(value) });

describe("evaluateWhen", () => {
  test.each<[WhenExpression, boolean]>([
    [binary("eq", param("score"), 0.9), true],
    [binary("eq", param("deep"), { a: null, b: [1, { y: 2 }] }), true],
    [binary("eq", param("deep"), { a: null, b: [{ y: 2 }, 1] }), false],
    [binary("eq", param("score"), "0.9"), false],
    [binary("ne", param("score"), "0.9"), true],
    [binary("eq", param("absent"), null), false],
    [{ op: "eq", left: param("absent"), right: param("missing") }, true],
    [binary("lt", param("score"), 1), true],
    [binary("lt", param("score"), 0.9), false],
    [binary("le", param("score"), 0.9), true],
    [binary("gt", param("score"), 0.9), false],
    [binary("ge", param("score"), 0.9), true],
    [binary("gt", param("name"), "a"), true],
    [binary("in", param("name"), ["a", "b"]), true],
    [binary("in", param("deep", "b"), [[1, { y: 2 }]]), true],
    [binary("in", param("name"), []), false],
    [binary("in", param("absent"), [null]), false],
    [{ op: "exists", value: param("none") }, true],
    [{ op: "exists", value: param("big") }, true],
    [{ op: "exists", value: param("absent") }, false],
    [{ op: "not", value: { op: "exists", value: param("absent") } }, true],
  ])("%j is %s", (expression, truth) => {
    expect(evaluate(expression)).toBe(truth);
  });

  test("and and or stop at the first value that decides", () => {
    const broken = binary("lt", param("name"), 1);
    const yes = binary("eq", param("name"), "b");
    const no = binary("ne", param("name"), "b");
    expect(evaluate({ op: "and", values: [yes, no, broken] })).toBe(false);
    expect(evaluate({ op: "or", values: [no, yes, broken] })).toBe(true);
    expect(() => evaluate({ op: "and", values: [yes, broken] })).toThrow(/two numbers/);
  });

  test.each<[WhenExpression, RegExp]>([
    [
      binary("lt", param("name"), 1),
      /two numbers or two texts.*params\.name is a string, .* a number/,
    ],
    [binary("ge", param("absent"), 1), /params\.absent is nothing/],
    [binary("gt", param("none"), 1), /is null/],
    [binary("in", param("name"), "abc"), /expected a list.*a string/],
    [binary("eq", param("big"), 1), /params\.big is too large/],
  ])("%j can't be evaluated", (expression, message) => {
    expect(() => evaluate(expression)).toThrow(message);
    expect(() => evaluate(expression)).toThrow(
      expect.objectContaining({ code: "CPC_WHEN_INVALID" }),
    );
  });
});

describe("whenSources", () => {
  test("finds every source, however deep", () => {
    const expression: WhenExpression = {
      op: "or",
      values: [
        { op: "not", value: { op: "exists", value: param("a") } },
        { op: "and", values: [{ op: "in", left: param("b"), right: param("c") }] },
        { op: "lt", left: param("d"), right: param("e") },
      ],
    };
    expect(whenSources(expression)).toEqual(["a", "b", "c", "d", "e"].map((name) => param(name)));
  });
});
