/**
 * Server-sent events over fetch: parses the stream and takes it up again after the last id.
 *
 * What must stay true: no event is given twice and none is left out: a new connection sends the id
 * of the last event that was given away. The server says `event: end` when there is nothing more to
 * come; a stream that only breaks off is taken up again.
 */
import { CoppiceError, isCoppiceError } from "@coppice/core";

export interface ServerEvent {
  readonly id: string | undefined;
  readonly event: string;
  readonly data: string;
}

/** Three times the server's longest silence. */
const SILENCE_MAX_MS = 45_000;
const RETRY_MS_MAX = 5000;
const RETRIES_MAX = 60;

/** One event from its lines; undefined for comments and empty blocks. */
const parseBlock = (block: string): ServerEvent | undefined => {
  let id: string | undefined;
  let event = "message";
  const data: string[] = [];
  for (const line of block.split("\n")) {
    const at = line.indexOf(":");
    if (at === 0) continue;
    const field = at < 0 ? line : line.slice(0, at);
    const value = at < 0 ? "" : line.slice(at + 1).replace(/^ /, "");
    if (field === "id") id = value;
    else if (field === "event") event = value;
    else if (field === "data") data.push(value);
  }
  if (data.length === 0) return undefined;
  return { id, event, data: data.join("\n") };
};

const within = async <T>(promise: Promise<T>, ms: number): Promise<T> => {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const silence = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(
      () =>
        reject(new CoppiceError("CPC_SERVER_UNREACHABLE", { detail: "the stream fell silent" })),
      ms,
    );
  });
  try {
    return await Promise.race([promise, silence]);
  } finally {
    clearTimeout(timer);
  }
};

/** Events of one response body; ends where the body ends. */
export async function* parseServerEvents(
  body: ReadableStream<Uint8Array>,
  silenceMaxMs: number = SILENCE_MAX_MS,
): AsyncGenerator<ServerEvent> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let buffer = "";
  try {
    for (;;) {
      const { done, value } = await within(reader.read(), silenceMaxMs);
      if (done) return;
      buffer += decoder.decode(value, { stream: true }).replaceAll("\r", "");
      for (let end = buffer.indexOf("\n\n"); end >= 0; end = buffer.indexOf("\n\n")) {
        const event = parseBlock(buffer.slice(0, end));
        buffer = buffer.slice(end + 2);
        if (event !== undefined) yield event;
      }
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}

const pause = async (ms: number, signal: AbortSignal | undefined): Promise<void> => {
  await new Promise<void>((resolve) => {
    const done = (): void => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal?.addEventListener("abort", done);
  });
};

const isAborted = (signal: AbortSignal | undefined): boolean => signal?.aborted ?? false;

const isTransient = (error: unknown): boolean =>
  !isCoppiceError(error) || (error.isRetryable && error.code !== "CPC_INTERNAL");

/**
 * @param connect opens the stream after this id; throws problems as CoppiceError
 * @param lastId what the caller already has
 */
export async function* resumeServerEvents(
  connect: (lastId: string | undefined) => Promise<Response>,
  lastId: string | undefined,
  signal: AbortSignal | undefined,
): AsyncGenerator<ServerEvent> {
  let last = lastId;
  let failures = 0;
  while (!isAborted(signal)) {
    try {
      const response = await connect(last);
      if (response.body === null) return;
      for await (const event of parseServerEvents(response.body)) {
        failures = 0;
        if (event.event === "end") return;
        last = event.id ?? last;
        yield event;
      }
    } catch (error) {
      if (isAborted(signal)) return;
      if (!isTransient(error) || failures >= RETRIES_MAX) throw error;
    }
    failures += 1;
    await pause(Math.min(RETRY_MS_MAX, 100 * 2 ** failures), signal);
  }
}
