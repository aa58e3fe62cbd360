/** People write "30s", "5m", "1h30m"; every other file speaks milliseconds. */
import { CoppiceError } from "./errors.ts";

const UNIT_MS: Readonly<Record<string, number>> = {
  ms: 1,
  s: 1000,
  m: 60_000,
  h: 3_600_000,
  d: 86_400_000,
};

/**
 * @param value milliseconds, or text such as "250ms", "30s", "1h30m"
 * @throws CPC_INVALID_INPUT where the text is none of these, or the result is negative or not whole
 */
export const parseDurationMs = (value: string | number): number => {
  if (typeof value === "number") {
    if (Number.isSafeInteger(value) && value >= 0) return value;
  } else if (/^(\d+(ms|s|m|h|d))+$/.test(value)) {
    let total = 0;
    for (const [, count, unit] of value.matchAll(/(\d+)(ms|s|m|h|d)/g)) {
      total += Number(count) * (UNIT_MS[unit ?? ""] ?? 0);
    }
    if (Number.isSafeInteger(total)) return total;
  }
  throw new CoppiceError("CPC_INVALID_INPUT", {
    detail: `expected a duration such as "30s" or whole milliseconds. Received: ${JSON.stringify(value)}`,
  });
};

/** 90_000 → "1m30s"; under a second in milliseconds; at most two units. */
export const formatDuration = (ms: number): string => {
  if (ms < 1000) return `${Math.round(ms)}ms`;
  if (ms < 10_000) return `${(ms / 1000).toFixed(1)}s`;
  const seconds = Math.round(ms / 1000);
  if (seconds < 60) return `${seconds}s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes}m${seconds % 60 ? `${seconds % 60}s` : ""}`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return `${hours}h${minutes % 60 ? `${minutes % 60}m` : ""}`;
  const days = Math.floor(hours / 24);
  return `${days}d${hours % 24 ? `${hours % 24}h` : ""}`;
};
