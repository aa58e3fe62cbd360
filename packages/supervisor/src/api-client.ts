/**
 * A worker's line to the server: registration and the two lanes of the exchange.
 *
 * What must stay true: a server that was restarted or lost this worker's row costs a registration,
 * never an attempt; silence is reported after ten minutes and changes nothing else.
 */
import {
  EXCHANGE_BYTES_MAX,
  type RegisterReply,
  registerReplySchema,
  type RegisterRequest,
  type StreamAnswer,
  type StreamItem,
  streamReplySchema,
  type WorkAnswer,
  type WorkItem,
  workReplySchema,
} from "@coppice/contract";
import { type AttemptRef, CoppiceError, type Logger } from "@coppice/core";

import { waitBeforeRetry } from "./backoff.ts";
import { HttpClient, isTransient, problemOf, type TextReply } from "./http-client.ts";
import { Lane } from "./lane.ts";

/** A request of a lane that is silent for so long is sent again; well below a lease. */
const EXCHANGE_IDLE_MS = 10_000;
const SILENCE_WARN_MS = 600_000;

export interface ApiClientOptions {
  readonly server: string;
  readonly token: string;
  readonly registration: () => RegisterRequest;
  /** Called after each registration, the first included. */
  readonly onRegistered: (reply: RegisterReply) => void;
  readonly logger: Logger;
}

export interface LeasedAttempt extends AttemptRef {
  readonly lease: string;
}

export class ApiClient {
  readonly http: HttpClient;
  readonly work: Lane<WorkItem, WorkAnswer>;
  readonly stream: Lane<StreamItem, StreamAnswer>;
  readonly #options: ApiClientOptions;
  readonly #silenceTimer: NodeJS.Timeout;
  #workerId = "";
  #registering: Promise<void> | undefined;
  #lastAnswerAt = performance.now();

  constructor(options: ApiClientOptions) {
    this.#options = options;
    this.http = new HttpClient(options);
    this.work = this.#openLane("work", (text) => workReplySchema.parse(JSON.parse(text)).answers);
    this.stream = this.#openLane(
      "stream",
      (text) => streamReplySchema.parse(JSON.parse(text)).answers,
    );
    this.#silenceTimer = setInterval(() => this.#warnOfSilence(), 60_000).unref();
  }

  get workerId(): string {
    return this.#workerId;
  }

  /** Milliseconds since the server answered anything, on the monotonic clock. */
  get silentMs(): number {
    return performance.now() - this.#lastAnswerAt;
  }

  /**
   * Until the server is there, as long as it takes.
   * @throws what the server refuses for good: the token, the protocol, the doorbell
   */
  async register(signal?: AbortSignal): Promise<void> {
    for (let failures = 1; ; failures += 1) {
      try {
        await this.#registerOnce();
        return;
      } catch (error) {
        if (!isTransient(error) || signal?.aborted === true) throw error;
        this.#options.logger[failures === 3 ? "warn" : "debug"](
          { server: this.#options.server, failures, err: error },
          "the server can't be reached to register",
        );
        await waitBeforeRetry(failures, signal);
      }
    }
  }

  attemptPath(ref: AttemptRef, rest: string): string {
    const { runId, step, item, attempt } = ref;
    return `/v1/workers/${this.#workerId}/attempts/${runId}/${step}/${item}/${attempt}/${rest}`;
  }

  close(): void {
    clearInterval(this.#silenceTimer);
    this.work.close();
    this.stream.close();
    this.http.close();
  }

  #openLane<Item, Answer>(
    name: "work" | "stream",
    parse: (text: string) => readonly Answer[],
  ): Lane<Item, Answer> {
    return new Lane<Item, Answer>({
      name,
      bytesMax: EXCHANGE_BYTES_MAX,
      logger: this.#options.logger,
      send: async (items, signal) => {
        const body = `{"lane":"${name}","items":[${items.join(",")}]}`;
        return parse((await this.#exchange(body, signal)).text);
      },
    });
  }

  async #exchange(body: string, signal: AbortSignal): Promise<TextReply> {
    for (;;) {
      const workerId = this.#workerId;
      const path = `/v1/workers/${workerId}/exchange`;
      const reply = await this.http.post(path, body, EXCHANGE_IDLE_MS, signal);
      if (reply.status === 200) {
        this.#lastAnswerAt = performance.now();
        return reply;
      }
      const problem = problemOf(reply);
      if (problem.code !== "CPC_WORKER_NOT_FOUND") throw problem;
      // The other lane may have registered in the meantime.
      if (workerId === this.#workerId) await this.#registerAgain();
    }
  }

  async #registerAgain(): Promise<void> {
    this.#registering ??= this.#registerOnce().finally(() => {
      this.#registering = undefined;
    });
    try {
      await this.#registering;
    } catch (cause) {
      // A refusal to register must not end the lanes: attempts go on, an operator may repair it.
      throw new CoppiceError("CPC_SERVER_UNREACHABLE", {
        detail: "The server does not know this worker and did not register it again.",
        cause,
      });
    }
  }

  async #registerOnce(): Promise<void> {
    const body = JSON.stringify(this.#options.registration());
    const reply = await this.http.post("/v1/workers", body, EXCHANGE_IDLE_MS);
    if (reply.status < 200 || reply.status >= 300) throw problemOf(reply);
    const parsed = registerReplySchema.parse(JSON.parse(reply.text));
    this.#lastAnswerAt = performance.now();
    this.#workerId = parsed.workerId;
    this.#options.onRegistered(parsed);
  }

  #warnOfSilence(): void {
    if (this.silentMs < SILENCE_WARN_MS) return;
    this.#options.logger.warn(
      { server: this.#options.server, silentMs: Math.round(this.silentMs) },
      "the server has been silent for long, attempts go on and their outcomes are kept",
    );
  }
}
