/**
 * The real `Logger`: pino, one JSON object a line, to stdout unless told otherwise.
 *
 * Every field, every message and every error passes `scrub.ts` before pino sees it, so no line can
 * hold a secret that its nets know. Writing is synchronous: what was logged before a crash is kept.
 */
import type { Logger, LogFn } from "@coppice/core";
import { pino } from "pino";
import { scrubFields, scrubText } from "./scrub.ts";

export const LOG_LEVELS = ["debug", "info", "warn", "error", "silent"] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

export interface LoggerOptions {
  /** The process: "api", "scheduler", "worker"… */
  readonly name: string;
  /** Default: info. */
  readonly level?: LogLevel;
  /** A file descriptor or something to write lines to. Default: stdout. */
  readonly destination?: number | { write(line: string): unknown };
}

type Fields = Readonly<Record<string, unknown>>;

const nothing: LogFn = () => undefined;

const wrap = (sink: pino.Logger, bindings: Fields): Logger => {
  const at = (level: Exclude<LogLevel, "silent">): LogFn =>
    sink.isLevelEnabled(level)
      ? (fields, message) => {
          sink[level]({ ...bindings, ...scrubFields(fields) }, scrubText(message));
        }
      : nothing;
  return {
    debug: at("debug"),
    info: at("info"),
    warn: at("warn"),
    error: at("error"),
    // Bindings are merged here and not by pino, which would write a name twice that is bound twice.
    child: (fields) => wrap(sink, { ...bindings, ...scrubFields(fields) }),
  };
};

export const createLogger = (options: LoggerOptions): Logger => {
  const { destination = 1 } = options;
  const sink = pino(
    {
      level: options.level ?? "info",
      base: { name: options.name, pid: process.pid },
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
      serializers: { err: (error: unknown) => error },
    },
    typeof destination === "number"
      ? pino.destination({ fd: destination, sync: true })
      : { write: (line: string) => void destination.write(line) },
  );
  return wrap(sink, {});
};
