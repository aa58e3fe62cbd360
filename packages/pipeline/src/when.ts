/**
 * Conditions: typed expressions over values, evaluated without `eval`.
 *
 * What must stay true: no surprise is ever true. Comparing the order of different types, or looking
 * into a value that was too large to stand inline, is an error that fails the step, not a `false`.
 */
import { canonicalJson, CoppiceError, type JsonValue } from "@coppice/core";

import type { ValueSource, WhenExpression } from "./ir.ts";
import { readSpilled } from "./placeholders.ts";

/** All sources of the expression, in the order in which they are written. */
export const whenSources = (expression: WhenExpression): readonly ValueSource[] => {
  switch (expression.op) {
    case "exists":
      return [expression.value];
    case "not":
      return whenSources(expression.value);
    case "and":
    case "or":
      return expression.values.flatMap((value) => whenSources(value));
    case "eq":
    case "ne":
    case "lt":
    case "le":
    case "gt":
    case "ge":
    case "in":
      return [expression.left, expression.right];
  }
};

type Resolve = (source: ValueSource) => JsonValue | undefined;

const describeSource = (source: ValueSource): string => {
  switch (source.from) {
    case "literal":
      return "the literal";
    case "param":
      return `params.${source.path.join(".")}`;
    case "output":
      return [source.step, "output", ...source.path].join(".");
    case "item":
      return ["item", ...source.path].join(".");
    case "run":
      return `run.${source.field}`;
  }
};

const describeType = (value: JsonValue | undefined): string => {
  if (value === undefined) return "nothing";
  if (value === null) return "null";
  if (Array.isArray(value)) return "a list";
  return typeof value === "object" ? "an object" : `a ${typeof value}`;
};

const load = (source: ValueSource, resolve: Resolve): JsonValue | undefined => {
  const value = resolve(source);
  if (readSpilled(value) === undefined) return value;
  throw new CoppiceError("CPC_WHEN_INVALID", {
    detail: `${describeSource(source)} is too large to be compared: it is stored as a file.`,
    hint: "Let the step return what the condition needs as a small value of its own.",
  });
};

const isEqual = (left: JsonValue | undefined, right: JsonValue | undefined): boolean => {
  if (left === undefined || right === undefined) return left === right;
  return left === right || canonicalJson(left) === canonicalJson(right);
};

type Comparison = Exclude<WhenExpression, { readonly op: "in" | "exists" | "not" | "and" | "or" }>;

const compare = (expression: Comparison, resolve: Resolve): boolean => {
  const { op } = expression;
  const left = load(expression.left, resolve);
  const right = load(expression.right, resolve);
  if (op === "eq") return isEqual(left, right);
  if (op === "ne") return !isEqual(left, right);
  const isComparable =
    (typeof left === "number" && typeof right === "number") ||
    (typeof left === "string" && typeof right === "string");
  if (!isComparable) {
    throw new CoppiceError("CPC_WHEN_INVALID", {
      detail:
        `"${op}" expected two numbers or two texts. Received: ` +
        `${describeSource(expression.left)} is ${describeType(left)}, ` +
        `${describeSource(expression.right)} is ${describeType(right)}.`,
    });
  }
  if (op === "lt") return left < right;
  if (op === "le") return left <= right;
  return op === "gt" ? left > right : left >= right;
};

/**
 * Equality is deep and blind to the order of keys. Texts are ordered by UTF-16 code units. A value
 * that isn't there (`resolve` gives undefined) equals only another that isn't there, is in no list,
 * and does not exist; null exists.
 * @throws CoppiceError CPC_WHEN_INVALID
 */
export const evaluateWhen = (expression: WhenExpression, resolve: Resolve): boolean => {
  switch (expression.op) {
    case "and":
      return expression.values.every((value) => evaluateWhen(value, resolve));
    case "or":
      return expression.values.some((value) => evaluateWhen(value, resolve));
    case "not":
      return !evaluateWhen(expression.value, resolve);
    case "exists":
      return resolve(expression.value) !== undefined;
    case "in": {
      const left = load(expression.left, resolve);
      const right = load(expression.right, resolve);
      if (!Array.isArray(right)) {
        throw new CoppiceError("CPC_WHEN_INVALID", {
          detail:
            `"in" expected a list on its right. Received: ` +
            `${describeSource(expression.right)} is ${describeType(right)}.`,
        });
      }
      return left !== undefined && right.some((value: JsonValue) => isEqual(left, value));
    }
    case "eq":
    case "ne":
    case "lt":
    case "le":
    case "gt":
    case "ge":
      return compare(expression, resolve);
  }
};
