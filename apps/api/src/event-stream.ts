/**
 * Server-sent events. What must stay true: an id is given to what it stands for and to nothing else,
 * so that Last-Event-ID resumes without gap and without a second copy; a comment at least every
 * 15 s; the stream ends with `event: end` and never without it unless the connection broke.
 */
import { Readable } from "node:stream";
import type { FastifyReply, FastifyRequest } from "fastify";
import { type Answered, answered } from "./handler.ts";

export const HEARTBEAT_MS = 10_000;

export interface StreamEvent {
  readonly id: number;
  readonly data: unknown;
}

export const formatEvent = ({ id, data }: StreamEvent): string =>
  `id: ${id}\ndata: ${JSON.stringify(data)}\n\n`;
const END = "event: end\ndata: {}\n\n";

/** Where the reader was: the header wins, because browsers and our client set it on reconnecting. */
export const resumePoint = (request: FastifyRequest, asked: number | undefined): number => {
  const header = request.headers["last-event-id"];
  const last = typeof header === "string" && /^\d{1,15}$/.test(header) ? Number(header) : undefined;
  return last ?? asked ?? 0;
};

export interface Portion {
  readonly events: readonly StreamEvent[];
  /** Nothing will ever follow. */
  readonly isEnd: boolean;
}

export interface StreamSource {
  /** What there is now; called again and again. */
  readonly next: () => Promise<Portion>;
  /** Resolves when there may be more, at the latest after `ms`. */
  readonly wait: (ms: number, signal: AbortSignal) => Promise<void>;
}

async function* produce(
  source: StreamSource,
  first: Portion,
  signal: AbortSignal,
): AsyncGenerator<string> {
  yield ": coppice\n\n";
  let portion = first;
  let silentSinceMs = performance.now();
  while (!signal.aborted) {
    if (portion.events.length > 0) {
      yield portion.events.map(formatEvent).join("");
      silentSinceMs = performance.now();
    }
    if (portion.isEnd) {
      yield END;
      return;
    }
    if (performance.now() - silentSinceMs >= HEARTBEAT_MS) {
      yield ": still here\n\n";
      silentSinceMs = performance.now();
    }
    // News that came since the last look ends the wait at once.
    await source.wait(HEARTBEAT_MS, signal);
    if (!signal.aborted) portion = await source.next();
  }
}

/** The first portion is read before anything is sent, so that its errors are ordinary problems. */
export const sendEvents = async (
  request: FastifyRequest,
  reply: FastifyReply,
  source: StreamSource,
): Promise<Answered> => {
  const gone = new AbortController();
  request.raw.socket.once("close", () => gone.abort());
  reply.raw.once("close", () => gone.abort());
  const first = await source.next();
  void reply
    .code(200)
    .header("content-type", "text/event-stream; charset=utf-8")
    .header("cache-control", "no-store")
    .header("x-accel-buffering", "no");
  return answered(Readable.from(produce(source, first, gone.signal), { objectMode: false }));
};
