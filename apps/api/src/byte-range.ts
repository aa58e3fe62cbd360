/** `range: bytes=a-b` of RFC 9110, one range only; anything else is answered with the whole. */
export interface WantedRange {
  readonly start: number;
  /** Half open. */
  readonly end: number;
}

/** "unsatisfiable" where the range lies beyond the end. */
export const parseRange = (
  header: string | undefined,
  sizeBytes: number,
): WantedRange | "unsatisfiable" | undefined => {
  const match = /^bytes=(\d{0,15})-(\d{0,15})$/.exec(header ?? "");
  const [, first = "", last = ""] = match ?? [];
  if (match === null || (first === "" && last === "")) return undefined;
  if (first === "") {
    const length = Math.min(Number(last), sizeBytes);
    return length === 0 ? "unsatisfiable" : { start: sizeBytes - length, end: sizeBytes };
  }
  const start = Number(first);
  const end = last === "" ? sizeBytes : Math.min(Number(last) + 1, sizeBytes);
  return start >= sizeBytes || end <= start ? "unsatisfiable" : { start, end };
};
