/** What stands in a definition, a reference or a literal, as the IR's ValueSource. */
import { CoppiceError, type JsonValue } from "@coppice/core";
import type { ValueSource } from "@coppice/pipeline";

import { sourceOf } from "./ref.ts";

const refuse = (place: string, what: string): CoppiceError =>
  new CoppiceError("CPC_PIPELINE_INVALID", {
    detail: `${place}: expected JSON or a reference. Received: ${what}`,
  });

/** Rejects everything that JSON would drop or change silently, and references inside literals. */
const checkJson = (value: unknown, place: string, depth: number): JsonValue => {
  if (value === null || typeof value === "boolean" || typeof value === "string") return value;
  if (typeof value === "number" && Number.isFinite(value)) return value;
  if (depth > 100) throw refuse(place, "a value nested more than 100 deep");
  if (sourceOf(value) !== undefined) {
    throw refuse(
      place,
      "a reference inside a literal; give it an input of its own and " +
        "put the parts together in the step",
    );
  }
  if (Array.isArray(value)) {
    return value.map((entry, index) => checkJson(entry, `${place}[${index}]`, depth + 1));
  }
  if (typeof value === "object") {
    const prototype: unknown = Object.getPrototypeOf(value);
    if (prototype === Object.prototype || prototype === null) {
      return Object.fromEntries(
        Object.entries(value)
          .filter(([, entry]) => entry !== undefined)
          .map(([key, entry]) => [key, checkJson(entry, `${place}.${key}`, depth + 1)]),
      );
    }
    throw refuse(place, `an instance of ${value.constructor.name}`);
  }
  throw refuse(place, typeof value === "number" ? String(value) : typeof value);
};

/**
 * @param place where it stands, for the error's text
 * @throws CPC_PIPELINE_INVALID where it is neither a reference nor JSON
 */
export const toValueSource = (value: unknown, place: string): ValueSource =>
  sourceOf(value) ?? { from: "literal", value: checkJson(value, place, 0) as never };
