/**
 * What a supervisor and its child say to each other: one JSON object a line, on two pipes.
 *
 * What must stay true: bytes of artifacts never travel here, they lie in files of the attempt's
 * folder; a child is not trusted, so everything it says is parsed before it is used; what an
 * attempt says carries its serial number, so that a late word of an earlier one is dropped.
 */
import { z } from "zod";

/** One line of a child; a longer one can only be a mistake or an attack, and ends the child. */
export const CHILD_LINE_CHARS_MAX = 16 * 1024 * 1024;

/** Why an attempt is told to stop; it is also `ctx.signal.reason`. */
export type AbortWord = "cancelled" | "timeout" | "heartbeat" | "drain";

/** The part of an assignment that the child needs, and where it may put files. */
export interface ChildAttempt {
  /** Counts the attempts of this child. */
  readonly serial: number;
  /** The attempt's own folder; made by whoever first needs it. */
  readonly dir: string;
  readonly runId: string;
  readonly pipeline: { readonly name: string; readonly version: number };
  readonly stepKey: string;
  readonly item: number;
  readonly itemName?: string | undefined;
  readonly attempt: number;
  readonly params: unknown;
  readonly inputs: Readonly<Record<string, unknown>>;
  readonly seed: string;
  readonly env: readonly string[];
  readonly checkpoint?: string | undefined;
  readonly traceparent?: string | undefined;
}

export type ToChild =
  | {
      readonly type: "init";
      /** The file whose default export is the project. */
      readonly entry: string;
      readonly projectDir: string;
      readonly bundleDigest: string;
      /** Packages that the bundle leaves outside, with the author's versions. */
      readonly externals: Readonly<Record<string, string>>;
      /** They resolve as if imported by this file. */
      readonly externalsFrom?: string | undefined;
    }
  | { readonly type: "run"; readonly attempt: ChildAttempt }
  | { readonly type: "abort"; readonly reason: AbortWord }
  | {
      readonly type: "reply";
      readonly id: number;
      readonly path?: string | undefined;
      readonly error?: { readonly code: string; readonly message: string } | undefined;
    };

const serial = z.number().int();
const id = z.number().int();
const sha256 = z.string().regex(/^[0-9a-f]{64}$/);

const failureSchema = z.object({
  code: z.string().max(64),
  message: z.string().max(16_384),
  stack: z.string().max(32_768).optional(),
  data: z.record(z.string(), z.json()).optional(),
  isRetryable: z.boolean(),
  retryAfterMs: z.number().int().min(0).optional(),
});
export type ChildFailure = z.infer<typeof failureSchema>;

const artifactSchema = z.object({
  sha256,
  sizeBytes: z.number().int().min(0),
  name: z.string().max(200),
  kind: z.string().max(64),
  metadata: z.record(z.string(), z.json()),
});

const resultSchema = z.discriminatedUnion("type", [
  z.object({
    type: z.literal("succeeded"),
    output: z.json(),
    artifacts: z.array(artifactSchema).max(1000),
  }),
  z.object({ type: z.literal("failed"), failure: failureSchema }),
]);
export type ChildResult = z.infer<typeof resultSchema>;

export const fromChildSchema = z.discriminatedUnion("type", [
  /** The bundle is loaded. */
  z.object({ type: z.literal("ready"), rssBytes: z.number() }),
  /** The bundle can't be loaded; the child ends. */
  z.object({ type: z.literal("unloadable"), failure: failureSchema }),
  /** The step's code ends its process; the process then kills itself, see `child/main.ts`. */
  z.object({ type: z.literal("exit"), code: z.number().int() }),
  z.object({ type: z.literal("log"), text: z.string() }),
  z.object({
    type: z.literal("metric"),
    serial,
    key: z.string().min(1).max(250),
    step: z.number().int(),
    value: z.union([z.number(), z.literal(["NaN", "Infinity", "-Infinity"])]),
    atMs: z.number().int(),
  }),
  z.object({ type: z.literal("heartbeat"), serial }),
  /** `file` is a name inside the attempt's folder, never a path. */
  z.object({
    type: z.literal("upload"),
    serial,
    id,
    file: z.string().regex(/^[A-Za-z0-9_-]{1,80}$/),
    sha256,
    sizeBytes: z.number().int().min(0),
    isCheckpoint: z.boolean(),
  }),
  z.object({ type: z.literal("download"), serial, id, sha256 }),
  z.object({ type: z.literal("join"), serial, id, step: z.number().int().min(0) }),
  /** The step's code used its context after the attempt had ended. */
  z.object({ type: z.literal("breach"), serial, use: z.string().max(100) }),
  z.object({
    type: z.literal("end"),
    serial,
    result: resultSchema,
    cpuMs: z.number().min(0),
    rssBytes: z.number().min(0),
    /** What the attempt left behind: timers, sockets; or an error that nobody awaited. */
    leaks: z.array(z.string().max(100)).max(20),
    hasDir: z.boolean(),
  }),
]);
export type FromChild = z.infer<typeof fromChildSchema>;
export type ChildEnd = Extract<FromChild, { type: "end" }>;

/** Cuts a stream of text into lines. */
export class LineSplitter {
  #rest = "";
  readonly #onLine: (line: string) => void;
  readonly #onTooLong: () => void;

  constructor(onLine: (line: string) => void, onTooLong: () => void) {
    this.#onLine = onLine;
    this.#onTooLong = onTooLong;
  }

  push(text: string): void {
    let start = 0;
    let end = text.indexOf("\n");
    if (end === -1) {
      this.#rest += text;
      if (this.#rest.length > CHILD_LINE_CHARS_MAX) this.#onTooLong();
      return;
    }
    while (end !== -1) {
      const line = this.#rest + text.slice(start, end);
      this.#rest = "";
      if (line !== "") this.#onLine(line);
      start = end + 1;
      end = text.indexOf("\n", start);
    }
    this.#rest = text.slice(start);
  }
}
