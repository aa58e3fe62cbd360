/**
 * W3C trace context, level 1: the `traceparent` header as pure functions of text and random bytes.
 *
 * What must stay true: all-zero ids are never made and never accepted; a header of a later version
 * is read by its first four fields, as the specification asks; a child keeps trace id and flags.
 */
export interface TraceParent {
  /** 32 lower-case hexadecimal digits. */
  readonly traceId: string;
  /** 16 lower-case hexadecimal digits: the span that is the caller. */
  readonly spanId: string;
  readonly isSampled: boolean;
}

const SHAPE = /^([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?$/;

/** undefined where the text is absent or not a valid header: then a new trace begins. */
export const parseTraceparent = (text: string | undefined): TraceParent | undefined => {
  const match = SHAPE.exec(text?.trim() ?? "");
  if (match === null) return undefined;
  const [, version = "", traceId = "", spanId = "", flags = "", rest] = match;
  if (version === "ff" || (version === "00" && rest !== undefined)) return undefined;
  if (/^0+$/.test(traceId) || /^0+$/.test(spanId)) return undefined;
  return { traceId, spanId, isSampled: (Number.parseInt(flags, 16) & 1) === 1 };
};

export const formatTraceparent = (parent: TraceParent): string =>
  `00-${parent.traceId}-${parent.spanId}-${parent.isSampled ? "01" : "00"}`;

/** All-zero ids are invalid, so the one draw in 2^64 that gives them becomes 1. */
const hexId = (random: Uint8Array): string => {
  const text = Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return /^0*$/.test(text) ? text.replace(/0$/, "1") : text;
};

const requireBytes = (random: Uint8Array, count: number): void => {
  if (random.length < count) {
    throw new RangeError(`expected ${count} random bytes. Received: ${random.length}`);
  }
};

/** @param random 24 bytes: 16 for the trace, 8 for the span */
export const newTraceparent = (random: Uint8Array, isSampled = true): string => {
  requireBytes(random, 24);
  return formatTraceparent({
    traceId: hexId(random.subarray(0, 16)),
    spanId: hexId(random.subarray(16, 24)),
    isSampled,
  });
};

/**
 * The header to send onwards from a span of our own.
 * @param random 24 bytes: the last 8 name the span, all of them where `parent` is not valid
 */
export const childTraceparent = (parent: string | undefined, random: Uint8Array): string => {
  requireBytes(random, 24);
  const parsed = parseTraceparent(parent);
  if (parsed === undefined) return newTraceparent(random);
  return formatTraceparent({ ...parsed, spanId: hexId(random.subarray(16, 24)) });
};
