/**
 * One lane of the exchange: items in order, one request at a time, each item its own answer.
 *
 * There is no timer: a batch closes when the previous request has returned. Everything on the wire
 * is repeatable, so a request without an answer is sent again until there is one; only `close`
 * ends that. An item that the server can't read is told apart by sending items one by one.
 */
import { CoppiceError, type Logger } from "@coppice/core";

import { waitBeforeRetry } from "./backoff.ts";
import { isTransient } from "./http-client.ts";

const ITEMS_MAX = 5000;

export interface LaneOptions<Answer> {
  readonly name: string;
  /** Sends texts of items and returns as many answers; throws CoppiceError. */
  readonly send: (items: readonly string[], signal: AbortSignal) => Promise<readonly Answer[]>;
  readonly bytesMax: number;
  readonly logger: Logger;
}

interface Waiting<Answer> {
  readonly text: string;
  readonly resolve: (answer: Answer) => void;
  readonly reject: (error: CoppiceError) => void;
}

export class Lane<Item, Answer> {
  readonly #options: LaneOptions<Answer>;
  readonly #closed = new AbortController();
  #queue: Waiting<Answer>[] = [];
  #isPumping = false;
  #failures = 0;

  constructor(options: LaneOptions<Answer>) {
    this.#options = options;
  }

  /** Whether the newest try brought no answer. */
  get isAway(): boolean {
    return this.#failures > 0;
  }

  /** @throws the server's refusal of this item, CPC_SERVER_UNREACHABLE after `close` */
  async push(item: Item): Promise<Answer> {
    if (this.#closed.signal.aborted) throw closedError();
    return await new Promise<Answer>((resolve, reject) => {
      this.#queue.push({ text: JSON.stringify(item), resolve, reject });
      if (this.#isPumping) return;
      this.#isPumping = true;
      // What this turn of the loop still brings goes into the same request.
      setImmediate(() => void this.#pump());
    });
  }

  close(): void {
    this.#closed.abort();
    const waiting = this.#queue;
    this.#queue = [];
    for (const { reject } of waiting) reject(closedError());
  }

  async #pump(): Promise<void> {
    while (this.#queue.length > 0 && !this.#closed.signal.aborted) {
      await this.#deliver(this.#takeBatch());
    }
    this.#isPumping = false;
  }

  #takeBatch(): readonly Waiting<Answer>[] {
    let sizeChars = 0;
    let count = 0;
    for (const { text } of this.#queue) {
      // A character is at most three bytes of UTF-8; the server accepts twice our limit.
      sizeChars += text.length;
      if (count > 0 && sizeChars > this.#options.bytesMax) break;
      count += 1;
      if (count === ITEMS_MAX) break;
    }
    return this.#queue.splice(0, count);
  }

  async #deliver(batch: readonly Waiting<Answer>[]): Promise<void> {
    for (;;) {
      try {
        await this.#trySend(batch);
        return;
      } catch (error) {
        if (this.#closed.signal.aborted) return rejectAll(batch, closedError());
        const problem = error instanceof CoppiceError ? error : unexpected(error);
        if (!isLasting(problem)) await this.#pause(problem, batch.length);
        else if (batch.length === 1) return rejectAll(batch, problem);
        else return await this.#deliverSingly(batch);
      }
    }
  }

  async #trySend(batch: readonly Waiting<Answer>[]): Promise<void> {
    const texts = batch.map(({ text }) => text);
    const answers = await this.#options.send(texts, this.#closed.signal);
    if (answers.length !== batch.length) {
      throw new CoppiceError("CPC_INTERNAL", {
        detail: `expected ${batch.length} answers. Received: ${answers.length}`,
      });
    }
    this.#failures = 0;
    for (const [index, answer] of answers.entries()) batch[index]?.resolve(answer);
  }

  async #pause(problem: CoppiceError, count: number): Promise<void> {
    this.#failures += 1;
    const { name, logger } = this.#options;
    const fields = { lane: name, failures: this.#failures, items: count, err: problem };
    if (this.#failures === 3) logger.warn(fields, "the server does not answer, trying again");
    else logger.debug(fields, "an exchange brought no answer");
    await waitBeforeRetry(this.#failures, this.#closed.signal).catch(() => undefined);
  }

  async #deliverSingly(batch: readonly Waiting<Answer>[]): Promise<void> {
    this.#options.logger.error(
      { lane: this.#options.name, items: batch.length },
      "the server refused a whole request, its items are sent one by one",
    );
    for (const item of batch) await this.#deliver([item]);
  }
}

const closedError = (): CoppiceError =>
  new CoppiceError("CPC_SERVER_UNREACHABLE", { detail: "The worker has stopped." });

const unexpected = (cause: unknown): CoppiceError =>
  new CoppiceError("CPC_INTERNAL", {
    detail: cause instanceof Error ? cause.message : String(cause),
    cause,
  });

const rejectAll = (batch: readonly Pick<Waiting<never>, "reject">[], error: CoppiceError): void => {
  for (const { reject } of batch) reject(error);
};

/** A refused token may be repaired by an operator while attempts go on: it is waited for. */
const isLasting = (error: CoppiceError): boolean =>
  !isTransient(error) && error.code !== "CPC_UNAUTHENTICATED" && error.code !== "CPC_FORBIDDEN";
