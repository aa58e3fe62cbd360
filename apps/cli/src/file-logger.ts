/** A Logger that writes JSON lines to a file: what the CLI's own helpers have to say. */
import { appendFileSync } from "node:fs";

import type { Logger } from "@coppice/core";

const toFields = (fields: Readonly<Record<string, unknown>>): object =>
  Object.fromEntries(
    Object.entries(fields).map(([name, value]) => [
      name,
      value instanceof Error ? { message: value.message, stack: value.stack } : value,
    ]),
  );

export const createFileLogger = (
  path: string,
  bound: Readonly<Record<string, unknown>> = {},
): Logger => {
  const write =
    (level: string) =>
    (fields: Readonly<Record<string, unknown>>, message: string): void => {
      const time = new Date(Date.now()).toISOString();
      const line = { level, time, ...toFields({ ...bound, ...fields }), msg: message };
      appendFileSync(path, `${JSON.stringify(line)}\n`, { mode: 0o600 });
    };
  return {
    debug: write("debug"),
    info: write("info"),
    warn: write("warn"),
    error: write("error"),
    child: (fields) => createFileLogger(path, { ...bound, ...fields }),
  };
};
