import { childTraceparent, parseTraceparent } from "@coppice/core";
import {
  type Context,
  type Span,
  type SpanContext,
  type SpanOptions,
  trace,
  type Tracer,
} from "@opentelemetry/api";
import { afterEach, describe, expect, test } from "vitest";
import { withSpan } from "./tracer.ts";

const PARENT = "00-0102030405060708090a0b0c0d0e0f10-1112131415161718-01";

interface Ended {
  readonly name: string;
  readonly attributes: unknown;
  readonly events: readonly unknown[];
  readonly status: unknown;
  readonly parent: SpanContext | undefined;
}

/** The least that an SDK does: spans with ids of their own, recorded when they end. */
const registerRecorder = (): Ended[] => {
  const ended: Ended[] = [];
  const startSpan = (name: string, options: SpanOptions | undefined, context: Context): Span => {
    const parent = trace.getSpanContext(context);
    const random = Uint8Array.from({ length: 24 }, () => 7);
    const header = parent && `00-${parent.traceId}-${parent.spanId}-0${parent.traceFlags}`;
    const own = parseTraceparent(childTraceparent(header, random));
    const events: unknown[] = [];
    let status: unknown;
    const span = {
      spanContext: () => ({ traceId: own?.traceId, spanId: own?.spanId, traceFlags: 1 }),
      recordException: (error: unknown) => events.push(error),
      setStatus: (value: unknown) => {
        status = value;
        return span;
      },
      end: () => ended.push({ name, attributes: options?.attributes, events, status, parent }),
    };
    return span as unknown as Span;
  };
  const startActiveSpan = (
    name: string,
    options: SpanOptions,
    context: Context,
    fn: (span: Span) => unknown,
  ): unknown => fn(startSpan(name, options, context));
  const tracer = { startSpan, startActiveSpan } as unknown as Tracer;
  trace.setGlobalTracerProvider({ getTracer: () => tracer });
  return ended;
};

afterEach(() => trace.disable());

describe("withSpan", () => {
  test("without an SDK it hands the caller's context through and returns the result", async () => {
    const result = await withSpan("op", PARENT, {}, (traceparent) => ({ traceparent }));
    expect(result).toEqual({ traceparent: PARENT });
    expect(await withSpan("op", undefined, {}, (traceparent) => traceparent)).toBeUndefined();
  });

  test("with an SDK the span continues the caller's trace under an id of its own", async () => {
    const ended = registerRecorder();
    const inner = await withSpan("op", PARENT, { step: 1 }, (traceparent) => traceparent);
    expect(ended).toHaveLength(1);
    expect(ended[0]).toMatchObject({ name: "op", attributes: { step: 1 }, events: [] });
    expect(ended[0]?.parent?.spanId).toBe("1112131415161718");
    expect(inner).toBe("00-0102030405060708090a0b0c0d0e0f10-0707070707070707-01");
  });

  test("an error is recorded without its secrets, the span ends, the error goes on", async () => {
    const ended = registerRecorder();
    const error = new Error("refused cpc_c4n4ry");
    const failing = withSpan("op", PARENT, {}, () => Promise.reject(error));
    await expect(failing).rejects.toBe(error);
    expect(ended).toHaveLength(1);
    expect(ended[0]?.status).toMatchObject({ code: 2 });
    expect(JSON.stringify(ended)).not.toContain("c4n4ry");
  });
});
