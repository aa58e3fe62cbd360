/**
 * JSON as a type, and its canonical text: keys sorted, no spaces, so that equal values have equal
 * digests (RFC 8785 in all but the exotic corners of number formatting, where ours is JavaScript's
 * own, which RFC 8785 prescribes).
 */
export type JsonValue = null | boolean | number | string | readonly JsonValue[] | JsonObject;
export interface JsonObject {
  readonly [key: string]: JsonValue;
}

export const isJsonObject = (value: unknown): value is JsonObject =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** @throws TypeError where the value is not JSON: undefined, functions, NaN, Infinity, bigint. */
export const canonicalJson = (value: JsonValue): string => {
  if (value === null || typeof value === "boolean" || typeof value === "string") {
    return JSON.stringify(value);
  }
  if (typeof value === "number") {
    if (!Number.isFinite(value))
      throw new TypeError(`expected a finite number. Received: ${value}`);
    return JSON.stringify(value);
  }
  if (Array.isArray(value)) return `[${value.map(canonicalJson).join(",")}]`;
  if (!isJsonObject(value)) throw new TypeError(`expected JSON. Received: ${typeof value}`);
  const fields = Object.keys(value)
    .toSorted()
    .map((key) => `${JSON.stringify(key)}:${canonicalJson(value[key] as JsonValue)}`);
  return `{${fields.join(",")}}`;
};

/** Walks own properties and array indices only; never the prototype. */
export const valueAt = (value: JsonValue, path: readonly string[]): JsonValue | undefined => {
  let current: JsonValue | undefined = value;
  for (const key of path) {
    if (typeof current !== "object" || current === null || !Object.hasOwn(current, key)) {
      return undefined;
    }
    current = (current as JsonObject)[key];
  }
  return current;
};
