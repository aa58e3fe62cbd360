/**
 * The context that a step's code gets as an argument.
 *
 * What must stay true: it belongs to one attempt. After the attempt's end every use of it is
 * refused with CPC_ISOLATION_BREACH and reported, so that work which outlived its attempt can't
 * speak for the next one in the same process.
 */
import { readFile } from "node:fs/promises";
import process from "node:process";

import { CoppiceError } from "@coppice/core";

import type { ChildAttempt, ChildResult, FromChild } from "../child-wire.ts";
import type { Bytes, Requests } from "./requests.ts";

type Artifact = Extract<ChildResult, { type: "succeeded" }>["artifacts"][number];
type Fields = Readonly<Record<string, unknown>>;
type Level = "debug" | "info" | "warn" | "error";

export interface ContextOptions {
  readonly attempt: ChildAttempt;
  readonly projectDir: string;
  readonly signal: AbortSignal;
  readonly requests: Requests;
  readonly send: (message: FromChild) => void;
  readonly log: (text: string) => void;
}

export interface OpenContext {
  readonly context: Readonly<Record<string, unknown>>;
  revoke(): void;
}

export const openContext = (options: ContextOptions): OpenContext => {
  const { attempt, requests, signal } = options;
  const gate = new Gate(attempt.serial, options.send);
  const context = Object.freeze({
    run: Object.freeze({
      id: attempt.runId,
      pipeline: attempt.pipeline.name,
      version: attempt.pipeline.version,
    }),
    step: Object.freeze({
      key: attempt.stepKey,
      item: attempt.item,
      itemName: attempt.itemName,
    }),
    attempt: attempt.attempt,
    signal,
    seed: attempt.seed,
    params: attempt.params,
    projectDir: options.projectDir,
    get dir(): string {
      gate.check("dir");
      return requests.folder("work");
    },
    log: openLog(gate, options.log),
    artifacts: openArtifacts(gate, requests),
    checkpoint: openCheckpoint(gate, requests, attempt),
    ...openSigns(gate, options),
    env: (name: string): string | undefined => {
      gate.check("env");
      if (!attempt.env.includes(name)) return undefined;
      // oxlint-disable-next-line no-restricted-properties -- This environment is the step's own.
      return process.env[name];
    },
  });
  return { context, revoke: () => gate.close() };
};

/** Knows whether the attempt is still going on. */
class Gate {
  #isOpen = true;
  readonly #serial: number;
  readonly #send: (message: FromChild) => void;

  constructor(serial: number, send: (message: FromChild) => void) {
    this.#serial = serial;
    this.#send = send;
  }

  check(use: string): void {
    if (this.#isOpen) return;
    this.#send({ type: "breach", serial: this.#serial, use });
    throw new CoppiceError("CPC_ISOLATION_BREACH", { detail: `It used ctx.${use}.` });
  }

  close(): void {
    this.#isOpen = false;
  }
}

const openLog = (gate: Gate, write: (text: string) => void): Record<Level, unknown> => {
  const at =
    (level: Level) =>
    (message: unknown, fields: Fields = {}): void => {
      gate.check(`log.${level}`);
      write(`${JSON.stringify({ level, message: String(message), ...fields })}\n`);
    };
  return Object.freeze({
    debug: at("debug"),
    info: at("info"),
    warn: at("warn"),
    error: at("error"),
  });
};

const openArtifacts = (gate: Gate, requests: Requests): unknown => {
  const file = async (ref: unknown): Promise<string> => {
    gate.check("artifacts.file");
    return await requests.download(digestOfRef(ref));
  };
  return Object.freeze({
    put: async (
      name: string,
      bytes: Bytes,
      options: { readonly kind?: string; readonly metadata?: Artifact["metadata"] } = {},
    ): Promise<{ $artifact: Artifact }> => {
      gate.check("artifacts.put");
      const { file: stored, sha256, sizeBytes } = await requests.store(bytes);
      await requests.upload({ file: stored, sha256, sizeBytes }, false);
      const { kind = "file", metadata = {} } = options;
      return { $artifact: { sha256, sizeBytes, name, kind, metadata } };
    },
    get: async (ref: unknown): Promise<Uint8Array> => {
      gate.check("artifacts.get");
      return await readFile(await file(ref));
    },
    file,
  });
};

const digestOfRef = (ref: unknown): string => {
  const digest = (ref as { $artifact?: { sha256?: unknown } } | null)?.$artifact?.sha256;
  if (typeof digest === "string" && /^[0-9a-f]{64}$/.test(digest)) return digest;
  throw new CoppiceError("CPC_INVALID_INPUT", {
    detail: `expected an artifact reference. Received: ${JSON.stringify(ref)?.slice(0, 200)}`,
  });
};

const openCheckpoint = (gate: Gate, requests: Requests, attempt: ChildAttempt): unknown => {
  let latest = attempt.checkpoint;
  return Object.freeze({
    save: async (bytes: Uint8Array): Promise<void> => {
      gate.check("checkpoint.save");
      const stored = await requests.store(bytes);
      await requests.upload(stored, true);
      latest = stored.sha256;
    },
    load: async (): Promise<Uint8Array | undefined> => {
      gate.check("checkpoint.load");
      return latest === undefined ? undefined : await readFile(await requests.download(latest));
    },
  });
};

/** Metrics, progress and the plain sign of life. */
const openSigns = (gate: Gate, { attempt, send, log }: ContextOptions) => {
  let progressStep = 0;
  const metric = (key: string, value: number, step: number): void =>
    send({
      type: "metric",
      serial: attempt.serial,
      key,
      step,
      value: Number.isFinite(value) ? value : (String(value) as "NaN"),
      atMs: Date.now(),
    });
  return {
    metric: (key: string, value: number, step = 0): void => {
      gate.check("metric");
      if (typeof value !== "number" || !Number.isSafeInteger(step)) {
        throw new CoppiceError("CPC_INVALID_INPUT", {
          detail: `expected a number and a whole step for the metric "${key}".`,
        });
      }
      metric(key, value, step);
    },
    progress: (ratio: number, message?: string): void => {
      gate.check("progress");
      metric("coppice.progress", Math.min(1, Math.max(0, ratio)), progressStep);
      progressStep += 1;
      if (message !== undefined)
        log(`${JSON.stringify({ level: "info", progress: ratio, message })}\n`);
    },
    heartbeat: (): void => {
      gate.check("heartbeat");
      send({ type: "heartbeat", serial: attempt.serial });
    },
  };
};
