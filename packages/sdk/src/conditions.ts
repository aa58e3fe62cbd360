/**
 * Builders of `when` conditions: typed expressions over references, kept in the pipeline as data
 * and judged by the server; never a function.
 */
import type { WhenExpression } from "@coppice/pipeline";

import type { StrictRef } from "./ref.ts";
import { toValueSource } from "./value-source.ts";

export type Condition = WhenExpression;
type Operand<T> = StrictRef<T> | T;

const compare =
  (op: "eq" | "ne" | "lt" | "le" | "gt" | "ge") =>
  (left: unknown, right: unknown): Condition => ({
    op,
    left: toValueSource(left, `${op}'s left side`),
    right: toValueSource(right, `${op}'s right side`),
  });

type Scalar = string | number | boolean | null | undefined;
export const eq: <T extends Scalar>(left: StrictRef<T>, right: Operand<NoInfer<T>>) => Condition =
  compare("eq");
export const ne: <T extends Scalar>(left: StrictRef<T>, right: Operand<NoInfer<T>>) => Condition =
  compare("ne");

type Order = <T extends number | string>(
  left: StrictRef<T>,
  right: StrictRef<number | string> | (T extends number ? number : string),
) => Condition;
export const lt: Order = compare("lt");
export const le: Order = compare("le");
export const gt: Order = compare("gt");
export const ge: Order = compare("ge");

/** Whether the value is one of the list's. */
export const oneOf = <T extends Scalar>(
  value: StrictRef<T>,
  list: Operand<readonly NoInfer<T>[]>,
): Condition => ({
  op: "in",
  left: toValueSource(value, "oneOf's value"),
  right: toValueSource(list, "oneOf's list"),
});

/** Whether there is a value that is not null. */
export const exists = (value: StrictRef<unknown>): Condition => ({
  op: "exists",
  value: toValueSource(value, "exists"),
});

export const not = (value: Condition): Condition => ({ op: "not", value });
export const and = (...values: readonly [Condition, ...Condition[]]): Condition => ({
  op: "and",
  values,
});
export const or = (...values: readonly [Condition, ...Condition[]]): Condition => ({
  op: "or",
  values,
});
