/**
 * From what a step returned to what travels: JSON of at most 64 KB, larger parts spilled as
 * artifacts, every artifact that it refers to listed.
 *
 * What must stay true: what JSON would change silently (undefined, NaN, dates, maps, cycles) is
 * refused with the path of the value; the author decides how to write it.
 */
import { CoppiceError, isJsonObject, type JsonValue } from "@coppice/core";

import type { ChildResult } from "../child-wire.ts";
import type { Requests } from "./requests.ts";

/** A top-level key above this size is spilled alone; the rest stays readable in place. */
const KEY_BYTES_MAX = 8 * 1024;
const OUTPUT_BYTES_MAX = 64 * 1024;
const DEPTH_MAX = 200;
const ARTIFACTS_MAX = 1000;

type Succeeded = Extract<ChildResult, { type: "succeeded" }>;
type Artifact = Succeeded["artifacts"][number];

export const packOutput = async (returned: unknown, requests: Requests): Promise<Succeeded> => {
  const value = returned === undefined ? null : returned;
  const artifacts = new Map<string, Artifact>();
  assertJson(value, "$", [], artifacts);
  const output = await spillLarge(value, artifacts, requests);
  if (artifacts.size > ARTIFACTS_MAX) {
    throw new CoppiceError("CPC_OUTPUT_TOO_LARGE", {
      detail: `expected at most ${ARTIFACTS_MAX} artifacts. Received: ${artifacts.size}`,
    });
  }
  return {
    type: "succeeded",
    output: output as Succeeded["output"],
    artifacts: [...artifacts.values()],
  };
};

const addArtifact = (artifacts: Map<string, Artifact>, artifact: Artifact): void => {
  artifacts.set(`${artifact.sha256} ${artifact.name}`, artifact);
};

const invalid = (path: string, received: string): CoppiceError =>
  new CoppiceError("CPC_OUTPUT_INVALID", {
    detail: `expected JSON at ${path}. Received: ${received}`,
    data: { path },
  });

/** Also collects the artifacts that the value refers to. */
const assertJson: (
  value: unknown,
  path: string,
  above: readonly object[],
  artifacts: Map<string, Artifact>,
) => asserts value is JsonValue = (value, path, above, artifacts) => {
  if (value === null || typeof value === "string" || typeof value === "boolean") return;
  if (typeof value === "number") {
    if (!Number.isFinite(value)) throw invalid(path, String(value));
    return;
  }
  if (typeof value !== "object") {
    throw invalid(path, typeof value === "undefined" ? "undefined" : `a ${typeof value}`);
  }
  if (above.includes(value)) throw invalid(path, "a cycle");
  if (above.length >= DEPTH_MAX) throw invalid(path, `more than ${DEPTH_MAX} levels`);
  const inside = [...above, value];
  if (Array.isArray(value)) {
    for (let index = 0; index < value.length; index += 1) {
      assertJson(value[index] as unknown, `${path}[${index}]`, inside, artifacts);
    }
    return;
  }
  const prototype: unknown = Object.getPrototypeOf(value);
  if (prototype !== Object.prototype && prototype !== null) {
    throw invalid(path, `a ${value.constructor?.name ?? "special object"}`);
  }
  collectArtifact(value as Record<string, unknown>, artifacts);
  for (const [key, item] of Object.entries(value)) {
    const step = /^[A-Za-z_$][\w$]*$/.test(key) ? `.${key}` : `[${JSON.stringify(key)}]`;
    assertJson(item, `${path}${step}`, inside, artifacts);
  }
};

const collectArtifact = (
  value: Record<string, unknown>,
  artifacts: Map<string, Artifact>,
): void => {
  const ref = value["$artifact"];
  if (typeof ref !== "object" || ref === null) return;
  const { sha256, sizeBytes, name, kind, metadata } = ref as Record<string, unknown>;
  if (typeof sha256 !== "string" || typeof sizeBytes !== "number") return;
  if (typeof name !== "string" || typeof kind !== "string") return;
  addArtifact(artifacts, {
    sha256,
    sizeBytes,
    name,
    kind,
    metadata: isJsonObject(metadata) ? (metadata as Artifact["metadata"]) : {},
  });
};

const spillLarge = async (
  value: JsonValue,
  artifacts: Map<string, Artifact>,
  requests: Requests,
): Promise<JsonValue> => {
  const text = JSON.stringify(value);
  const sizeBytes = Buffer.byteLength(text);
  if (sizeBytes <= KEY_BYTES_MAX) return value;
  if (!isJsonObject(value)) {
    if (sizeBytes <= OUTPUT_BYTES_MAX) return value;
    return await spill(value, text, "output", artifacts, requests);
  }
  const slim: Record<string, JsonValue> = {};
  for (const [key, item] of Object.entries(value)) {
    const itemText = JSON.stringify(item);
    slim[key] =
      Buffer.byteLength(itemText) > KEY_BYTES_MAX
        ? await spill(item, itemText, `output.${key}`, artifacts, requests)
        : item;
  }
  const slimText = JSON.stringify(slim);
  if (Buffer.byteLength(slimText) <= OUTPUT_BYTES_MAX) return slim;
  return await spill(slim, slimText, "output", artifacts, requests);
};

const spill = async (
  value: JsonValue,
  text: string,
  name: string,
  artifacts: Map<string, Artifact>,
  requests: Requests,
): Promise<JsonValue> => {
  const stored = await requests.store(text);
  await requests.upload(stored, false);
  const { sha256, sizeBytes } = stored;
  addArtifact(artifacts, {
    sha256,
    sizeBytes,
    name: name.slice(0, 200),
    kind: "spilled",
    metadata: {},
  });
  const length = Array.isArray(value) ? { length: value.length } : {};
  return { $spilled: { sha256, sizeBytes, ...length } };
};
