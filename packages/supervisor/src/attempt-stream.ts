/**
 * What one attempt says while it runs: its log as one ordered text, and its metrics.
 *
 * What must stay true: memory for it is bounded whatever the step prints: five megabytes of the
 * beginning go out as they come, the last five are kept and go out at the end, and between them
 * stands how much is missing. An offset is a byte's place in what is kept, so that a chunk that is
 * sent again is stored once. Everything is on its way 200 ms later, and before the finish.
 */
import { LOG_CHUNK_BYTES_MAX, type StreamAnswer, type StreamItem } from "@coppice/contract";

const FLUSH_MS = 200;
export const LOG_HEAD_BYTES_MAX = 5 * 1024 * 1024;
export const LOG_TAIL_BYTES_MAX = 5 * 1024 * 1024;
const POINTS_MAX = 5000;

type LogItem = Extract<StreamItem, { type: "log" }>;
type MetricItem = Extract<StreamItem, { type: "metric" }>;
export type Point = MetricItem["points"][number];
type Identity = Omit<LogItem, "type" | "offset" | "text">;

export class AttemptStream {
  readonly #identity: Identity;
  readonly #push: (item: StreamItem) => Promise<StreamAnswer>;
  readonly #onAnswer: (answer: StreamAnswer) => void;
  #head: string[] = [];
  #headBytes = 0;
  #offset = 0;
  #tail: Buffer[] = [];
  #tailBytes = 0;
  #droppedBytes = 0;
  #points: Point[] = [];
  #timer: NodeJS.Timeout | undefined;
  readonly #pending = new Set<Promise<void>>();

  constructor(
    identity: Identity,
    push: (item: StreamItem) => Promise<StreamAnswer>,
    onAnswer: (answer: StreamAnswer) => void,
  ) {
    this.#identity = identity;
    this.#push = push;
    this.#onAnswer = onAnswer;
  }

  log(text: string): void {
    const sizeBytes = Buffer.byteLength(text);
    if (this.#tailBytes > 0 || this.#headBytes + sizeBytes > LOG_HEAD_BYTES_MAX) {
      this.#keepTail(Buffer.from(text));
      return;
    }
    this.#headBytes += sizeBytes;
    this.#head.push(text);
    this.#schedule();
  }

  metric(point: Point): void {
    this.#points.push(point);
    if (this.#points.length >= POINTS_MAX) this.#flush();
    else this.#schedule();
  }

  /** Sends all that is left; resolves when the server has it. */
  async end(): Promise<void> {
    if (this.#tailBytes > 0) {
      if (this.#droppedBytes > 0) this.#head.push(droppedNotice(this.#droppedBytes));
      this.#head.push(Buffer.concat(this.#tail).toString("utf8"));
      this.#tail = [];
      this.#tailBytes = 0;
    }
    this.#flush();
    await Promise.all(this.#pending);
  }

  #keepTail(bytes: Buffer): void {
    this.#tail.push(bytes);
    this.#tailBytes += bytes.byteLength;
    while (this.#tailBytes > LOG_TAIL_BYTES_MAX && this.#tail.length > 1) {
      const oldest = this.#tail.shift();
      this.#tailBytes -= oldest?.byteLength ?? 0;
      this.#droppedBytes += oldest?.byteLength ?? 0;
    }
  }

  #schedule(): void {
    this.#timer ??= setTimeout(() => this.#flush(), FLUSH_MS);
  }

  #flush(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (this.#head.length > 0) {
      const bytes = Buffer.from(this.#head.join(""));
      this.#head = [];
      for (const chunk of chunksOf(bytes)) {
        const text = chunk.toString("utf8");
        this.#send({ type: "log", ...this.#identity, offset: this.#offset, text });
        this.#offset += chunk.byteLength;
      }
    }
    while (this.#points.length > 0) {
      const points = this.#points.splice(0, POINTS_MAX);
      this.#send({ type: "metric", ...this.#identity, points });
    }
  }

  #send(item: StreamItem): void {
    const sent = this.#push(item).then(this.#onAnswer, () => undefined);
    this.#pending.add(sent);
    void sent.finally(() => this.#pending.delete(sent));
  }
}

const droppedNotice = (droppedBytes: number): string =>
  `\n${JSON.stringify({ level: "warn", message: "part of the log was dropped", droppedBytes })}\n`;

/** Cuts at most 64 KB at a time, never inside a character. */
const chunksOf = (bytes: Buffer): Buffer[] => {
  const chunks: Buffer[] = [];
  for (let at = 0; at < bytes.byteLength; ) {
    let end = Math.min(at + LOG_CHUNK_BYTES_MAX, bytes.byteLength);
    // Bytes 10xxxxxx continue a character that began before them.
    while (end < bytes.byteLength && ((bytes[end] ?? 0) & 0xc0) === 0x80) end -= 1;
    chunks.push(bytes.subarray(at, end));
    at = end;
  }
  return chunks;
};
