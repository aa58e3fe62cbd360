/**
 * What stands inside a stored output for bytes that lie elsewhere.
 *
 * `{ "$spilled": … }` stands for a JSON value that was too large to stand inline, `{ "$artifact": … }`
 * for a file. What must stay true: a placeholder is an object with that one key and nothing else.
 */
import { isJsonObject, type JsonObject, type JsonValue, valueAt } from "@coppice/core";

export interface SpilledValue {
  readonly sha256: string;
  readonly sizeBytes: number;
  /** Where the value is a list. */
  readonly length?: number;
}

const SHA256 = /^[0-9a-f]{64}$/;

const onlyField = (value: JsonValue | undefined, name: string): JsonObject | undefined => {
  if (!isJsonObject(value) || !Object.hasOwn(value, name)) return undefined;
  const inner = value[name];
  return Object.keys(value).length === 1 && isJsonObject(inner) ? inner : undefined;
};

export const readSpilled = (value: JsonValue | undefined): SpilledValue | undefined => {
  const inner = onlyField(value, "$spilled");
  if (inner === undefined) return undefined;
  const { sha256, sizeBytes, length } = inner;
  if (typeof sha256 !== "string" || !SHA256.test(sha256)) return undefined;
  if (typeof sizeBytes !== "number") return undefined;
  return typeof length === "number" ? { sha256, sizeBytes, length } : { sha256, sizeBytes };
};

/** The reference's fields as they stand: sha256, sizeBytes, name, kind, metadata. */
export const readArtifact = (value: JsonValue | undefined): JsonObject | undefined => {
  const inner = onlyField(value, "$artifact");
  return typeof inner?.["sha256"] === "string" && SHA256.test(inner["sha256"]) ? inner : undefined;
};

export type Located =
  | { readonly kind: "value"; readonly value: JsonValue }
  /** The rest of the way leads inside the value that lies under this digest. */
  | { readonly kind: "spilled"; readonly spilled: SpilledValue; readonly path: readonly string[] }
  | { readonly kind: "missing" };

/** Walks into a stored value as far as it stands inline. */
export const locate = (value: JsonValue | undefined, path: readonly string[]): Located => {
  let current = value;
  for (let depth = 0; ; depth += 1) {
    if (current === undefined) return { kind: "missing" };
    const spilled = readSpilled(current);
    if (spilled !== undefined) return { kind: "spilled", spilled, path: path.slice(depth) };
    const key = path[depth];
    if (key === undefined) return { kind: "value", value: current };
    current = valueAt(current, [key]);
  }
};
