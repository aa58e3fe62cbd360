/**
 * Files of one attempt, to and from the server, on behalf of its child.
 *
 * What must stay true: a child names a file of its own folder or a digest, never a path or an
 * address; the lease travels from here only, the child never sees it; a server that is away is
 * waited for, until the attempt ends.
 */
import { mkdir } from "node:fs/promises";
import { join } from "node:path";

import type { StreamAnswer, StreamItem } from "@coppice/contract";
import { CoppiceError, isCoppiceError } from "@coppice/core";

import type { ApiClient, LeasedAttempt } from "./api-client.ts";
import { waitBeforeRetry } from "./backoff.ts";
import type { FromChild, ToChild } from "./child-wire.ts";
import { isTransient } from "./http-client.ts";

export type TransferRequest = Extract<FromChild, { type: "upload" | "download" | "join" }>;
type Reply = Extract<ToChild, { type: "reply" }>;

export interface TransferOptions {
  readonly api: Pick<ApiClient, "http" | "stream" | "attemptPath">;
  readonly attempt: LeasedAttempt;
  readonly dir: string;
  readonly onAnswer: (answer: StreamAnswer) => void;
}

export class Transfers {
  readonly #options: TransferOptions;
  readonly #ended = new AbortController();

  constructor(options: TransferOptions) {
    this.#options = options;
  }

  async answer(request: TransferRequest): Promise<Reply> {
    try {
      const path = await this.#serve(request);
      return { type: "reply", id: request.id, path };
    } catch (error) {
      const code = isCoppiceError(error) ? error.code : "CPC_INTERNAL";
      const message = error instanceof Error ? error.message : String(error);
      return { type: "reply", id: request.id, error: { code, message } };
    }
  }

  end(): void {
    this.#ended.abort();
  }

  async #serve(request: TransferRequest): Promise<string | undefined> {
    switch (request.type) {
      case "upload":
        await this.#upload(request);
        return undefined;
      case "download": {
        const path = `artifacts/${request.sha256}`;
        return await this.#download(path, request.sha256, request.sha256);
      }
      case "join":
        return await this.#download(`joins/${request.step}`, `join-${request.step}`, undefined);
    }
  }

  async #upload(request: Extract<TransferRequest, { type: "upload" }>): Promise<void> {
    const { api, attempt, dir } = this.#options;
    const file = join(dir, "out", request.file);
    await this.#untilAnswered(async (signal) => {
      const path = api.attemptPath(attempt, `artifacts/${request.sha256}`);
      await api.http.putFile(path, file, request.sizeBytes, this.#headers(), signal);
    });
    if (request.isCheckpoint) await this.#announceCheckpoint(request);
  }

  async #announceCheckpoint(request: Extract<TransferRequest, { type: "upload" }>): Promise<void> {
    const { runId, step, item, attempt, lease } = this.#options.attempt;
    const { sha256, sizeBytes } = request;
    const ref = { runId, step, item, attempt, lease };
    const announcement: StreamItem = { type: "checkpoint", ...ref, sha256, sizeBytes };
    const answer = await this.#options.api.stream.push(announcement);
    this.#options.onAnswer(answer);
    if (answer.type === "problem") {
      throw new CoppiceError("CPC_INTERNAL", { detail: answer.message });
    }
  }

  async #download(rest: string, name: string, sha256: string | undefined): Promise<string> {
    const { api, attempt, dir } = this.#options;
    const folder = join(dir, "in");
    await mkdir(folder, { recursive: true });
    const file = join(folder, name);
    await this.#untilAnswered(async (signal) => {
      const path = api.attemptPath(attempt, rest);
      await api.http.getFile(path, file, sha256, this.#headers(), signal);
    });
    return file;
  }

  #headers(): Record<string, string> {
    return { "x-coppice-lease": this.#options.attempt.lease };
  }

  async #untilAnswered(send: (signal: AbortSignal) => Promise<void>): Promise<void> {
    await untilAnswered(send, this.#ended.signal);
  }
}

/** Repeats what a server that is away did not answer. */
export const untilAnswered = async (
  send: (signal: AbortSignal) => Promise<void>,
  signal: AbortSignal,
): Promise<void> => {
  for (let failures = 1; ; failures += 1) {
    try {
      await send(signal);
      return;
    } catch (error) {
      // A worker's row that is missing comes back with the lanes' next request.
      const isRepairable = isCoppiceError(error) && error.code === "CPC_WORKER_NOT_FOUND";
      if (signal.aborted || !(isTransient(error) || isRepairable)) throw error;
      await waitBeforeRetry(failures, signal);
    }
  }
};
