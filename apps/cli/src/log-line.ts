/** A line of a step's log for people: ours are JSON, what the code printed itself is left alone. */
import { isJsonObject, type JsonValue } from "@coppice/core";

import type { Colors } from "./output.ts";

const parse = (line: string): JsonValue | undefined => {
  if (!line.startsWith("{")) return undefined;
  try {
    return JSON.parse(line) as JsonValue;
  } catch {
    return undefined;
  }
};

const formatValue = (value: JsonValue): string =>
  typeof value === "string" && /^[^\s"=]+$/.test(value) ? value : JSON.stringify(value);

/** `{"level":"warn","message":"slow","ms":3}` → `warn slow ms=3`; info is not named. */
export const formatLogLine = (line: string, colors: Colors): string => {
  const entry = parse(line);
  if (!isJsonObject(entry)) return line;
  const { level, message, ...fields } = entry;
  if (typeof level !== "string" || typeof message !== "string") return line;
  const paint: Readonly<Record<string, (text: string) => string>> = {
    debug: colors.dim,
    warn: colors.yellow,
    error: colors.red,
  };
  const mark = level === "info" ? "" : `${(paint[level] ?? colors.dim)(level)} `;
  const rest = Object.entries(fields)
    .map(([name, value]) => ` ${colors.dim(`${name}=`)}${formatValue(value)}`)
    .join("");
  return `${mark}${message}${rest}`;
};
