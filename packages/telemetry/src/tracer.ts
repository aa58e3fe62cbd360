/**
 * The tracer port over @opentelemetry/api: costs next to nothing and does nothing until the process
 * registers an SDK; the trace context is handed through either way.
 */
import { formatTraceparent, parseTraceparent } from "@coppice/core";
import {
  type Attributes,
  type Context,
  isSpanContextValid,
  ROOT_CONTEXT,
  type Span,
  SpanStatusCode,
  trace,
  TraceFlags,
} from "@opentelemetry/api";
import { scrubText } from "./scrub.ts";

export type SpanAttributes = Readonly<Record<string, string | number | boolean>>;

const remoteContext = (traceparent: string | undefined): Context => {
  const parent = parseTraceparent(traceparent);
  if (parent === undefined) return ROOT_CONTEXT;
  return trace.setSpanContext(ROOT_CONTEXT, {
    traceId: parent.traceId,
    spanId: parent.spanId,
    traceFlags: parent.isSampled ? TraceFlags.SAMPLED : TraceFlags.NONE,
    isRemote: true,
  });
};

const headerOf = (span: Span): string | undefined => {
  const context = span.spanContext();
  if (!isSpanContextValid(context)) return undefined;
  return formatTraceparent({
    traceId: context.traceId,
    spanId: context.spanId,
    isSampled: (context.traceFlags & TraceFlags.SAMPLED) !== 0,
  });
};

/** What an exporter may see of an error: scrubbed, like a log line. */
const recordError = (span: Span, error: unknown): void => {
  const message = scrubText(error instanceof Error ? error.message : String(error));
  const name = error instanceof Error ? error.name : "Error";
  const stack = error instanceof Error ? scrubText(error.stack ?? "") : "";
  span.recordException({ name, message, stack });
  span.setStatus({ code: SpanStatusCode.ERROR, message });
};

/**
 * Runs `fn` inside a span; an error is recorded and thrown on.
 * @param traceparent the caller's header, where one came
 * @param fn gets the header to send onwards: this span's own with an SDK, the caller's without
 */
export const withSpan = <T>(
  name: string,
  traceparent: string | undefined,
  attributes: SpanAttributes,
  fn: (traceparent: string | undefined) => Promise<T> | T,
): Promise<T> => {
  const tracer = trace.getTracer("coppice");
  const context = remoteContext(traceparent);
  const options = { attributes: attributes satisfies Attributes };
  return tracer.startActiveSpan(name, options, context, async (span) => {
    try {
      return await fn(headerOf(span));
    } catch (error) {
      recordError(span, error);
      throw error;
    } finally {
      span.end();
    }
  });
};
