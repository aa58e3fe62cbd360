/**
 * From what the assignment says about inputs to the values that a step's code gets.
 *
 * A value that was too large to stand inline is `{ "$spilled": … }` in its place: whole, or under a
 * top-level key. Users never see that: it is fetched here, wherever a path or a value meets it.
 */
import { readFile } from "node:fs/promises";

import { CoppiceError, isJsonObject, type JsonValue } from "@coppice/core";

import type { Requests } from "./requests.ts";

/** Spilled values stand at the top or one level below it; in a join, one deeper. */
const SPILLED_DEPTH_MAX = 3;

export const resolveInputs = async (
  inputs: Readonly<Record<string, unknown>>,
  requests: Requests,
): Promise<Record<string, unknown>> => {
  const entries = await Promise.all(
    Object.entries(inputs).map(async ([name, input]) => {
      const value = await resolveInput(input as Input, requests);
      return value === undefined ? undefined : ([name, value] as const);
    }),
  );
  return Object.fromEntries(entries.filter((entry) => entry !== undefined));
};

type Input =
  | { readonly kind: "value"; readonly value: JsonValue }
  | { readonly kind: "spilled"; readonly sha256: string; readonly path: readonly string[] }
  | { readonly kind: "join"; readonly step: number; readonly path: readonly string[] }
  | { readonly kind: "missing" };

const resolveInput = async (input: Input, requests: Requests): Promise<JsonValue | undefined> => {
  switch (input.kind) {
    case "missing":
      return undefined;
    case "value":
      return await unspill(input.value, requests, SPILLED_DEPTH_MAX);
    case "spilled": {
      const root = await fetchJson(input.sha256, requests);
      return await follow(root, input.path, requests);
    }
    case "join": {
      const text = await readFile(await requests.join(input.step), "utf8");
      const lines = text.split("\n").filter((line) => line !== "");
      const values: JsonValue[] = [];
      for (const line of lines) {
        const value = await follow(JSON.parse(line) as JsonValue, input.path, requests);
        values.push(value ?? null);
      }
      return values;
    }
  }
};

const fetchJson = async (sha256: string, requests: Requests): Promise<JsonValue> => {
  const text = await readFile(await requests.download(sha256), "utf8");
  try {
    return JSON.parse(text) as JsonValue;
  } catch (cause) {
    throw new CoppiceError("CPC_INPUT_UNAVAILABLE", {
      detail: `expected JSON in the spilled value ${sha256}.`,
      cause,
    });
  }
};

const spilledDigest = (value: JsonValue | undefined): string | undefined => {
  if (!isJsonObject(value)) return undefined;
  const spilled = value["$spilled"];
  if (!isJsonObject(spilled) || typeof spilled["sha256"] !== "string") return undefined;
  return Object.keys(value).length === 1 ? spilled["sha256"] : undefined;
};

/** Walks own properties only, fetching what was spilled on the way and at the end. */
const follow = async (
  root: JsonValue,
  path: readonly string[],
  requests: Requests,
): Promise<JsonValue | undefined> => {
  let current: JsonValue | undefined = root;
  for (const key of path) {
    const digest = spilledDigest(current);
    if (digest !== undefined) current = await fetchJson(digest, requests);
    if (typeof current !== "object" || current === null || !Object.hasOwn(current, key)) {
      return undefined;
    }
    current = (current as Readonly<Record<string, JsonValue>>)[key];
  }
  return current === undefined ? undefined : await unspill(current, requests, SPILLED_DEPTH_MAX);
};

const unspill = async (value: JsonValue, requests: Requests, depth: number): Promise<JsonValue> => {
  const digest = spilledDigest(value);
  if (digest !== undefined) {
    return await unspill(await fetchJson(digest, requests), requests, depth - 1);
  }
  if (depth === 0 || !hasSpilled(value, depth)) return value;
  if (Array.isArray(value)) {
    return await Promise.all(value.map(async (item) => await unspill(item, requests, depth - 1)));
  }
  const entries = Object.entries(value as Readonly<Record<string, JsonValue>>).map(
    async ([key, item]) => [key, await unspill(item, requests, depth - 1)] as const,
  );
  return Object.fromEntries(await Promise.all(entries));
};

/** The usual answer is no, found without a promise per value. */
const hasSpilled = (value: JsonValue, depth: number): boolean => {
  if (typeof value !== "object" || value === null) return false;
  if (spilledDigest(value) !== undefined) return true;
  return depth > 0 && Object.values(value).some((item) => hasSpilled(item, depth - 1));
};
