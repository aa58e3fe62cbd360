/**
 * What a step's code is given. It belongs to one attempt: after the attempt's end every method
 * throws CPC_ISOLATION_BREACH. The worker's child builds it; this file only says what it is.
 */
import type { JsonObject, JsonValue } from "@coppice/core";

import type { ArtifactRef } from "./artifact.ts";

export interface StepLog {
  debug(message: string, fields?: JsonObject): void;
  info(message: string, fields?: JsonObject): void;
  warn(message: string, fields?: JsonObject): void;
  error(message: string, fields?: JsonObject): void;
}

export type ArtifactBytes =
  | Uint8Array
  | string
  | AsyncIterable<Uint8Array>
  | { readonly file: string };

export interface ArtifactOptions {
  /** What the bytes are: "table", "model", "report", … */
  readonly kind?: string;
  readonly metadata?: JsonObject;
}

export interface StepArtifacts {
  /** Stores bytes and returns the reference; it counts once it stands in the step's output. */
  put(name: string, bytes: ArtifactBytes, options?: ArtifactOptions): Promise<ArtifactRef>;
  get(ref: ArtifactRef): Promise<Uint8Array>;
  /** A file in the attempt's work folder with the artifact's bytes; read-only by agreement. */
  file(ref: ArtifactRef): Promise<string>;
}

export interface StepCheckpoint {
  /** The newest one survives the attempt and is what the next attempt of this step run loads. */
  save(bytes: Uint8Array): Promise<void>;
  load(): Promise<Uint8Array | undefined>;
}

export interface StepContext {
  readonly run: { readonly id: string; readonly pipeline: string; readonly version: number };
  readonly step: {
    readonly key: string;
    /** Index of the item, 0 where the step has no map. */
    readonly item: number;
    readonly itemName: string | undefined;
  };
  /** From 1. */
  readonly attempt: number;
  /** Aborts on cancellation, on the timeout and when the worker must stop. */
  readonly signal: AbortSignal;
  /** The same for every attempt of this step run; `Math.random` is seeded from it. */
  readonly seed: string;
  /** The run's parameters. */
  readonly params: JsonValue;
  /** A private work folder, deleted when the attempt ends. */
  readonly dir: string;
  /** Where the project's `files` lie, read-only. */
  readonly projectDir: string;
  readonly log: StepLog;
  readonly artifacts: StepArtifacts;
  readonly checkpoint: StepCheckpoint;
  metric(key: string, value: number, step?: number): void;
  /** @param ratio from 0 to 1 */
  progress(ratio: number, message?: string): void;
  /** A sign of life for the heartbeat timeout, where there is nothing to log. */
  heartbeat(): void;
  /** A variable that the step's options name in `env`; undefined where the worker has none. */
  env(name: string): string | undefined;
}
