/**
 * HTTP as a worker needs it: keep-alive, JSON texts, and bodies that are files.
 *
 * What must stay true: every request ends, by an answer or by an error, within its deadline; a
 * download is a whole file with the right digest or no file at all.
 */
import { createHash } from "node:crypto";
import { createReadStream, createWriteStream } from "node:fs";
import { rename, rm } from "node:fs/promises";
import { Agent as HttpAgent, type IncomingMessage, request as httpRequest } from "node:http";
import { Agent as HttpsAgent, request as httpsRequest } from "node:https";
import { pipeline } from "node:stream/promises";

import { fromProblem } from "@coppice/contract";
import { CoppiceError } from "@coppice/core";

const JSON_BYTES_MAX = 64 * 1024 * 1024;
/** A transfer may take long, but not without a byte for this long. */
const TRANSFER_IDLE_MS = 30_000;
const SOCKETS_MAX = 16;

export interface HttpClientOptions {
  readonly server: string;
  readonly token: string;
}

export interface TextReply {
  readonly status: number;
  readonly text: string;
}

interface Call {
  readonly method: "GET" | "POST" | "PUT";
  readonly path: string;
  readonly headers?: Readonly<Record<string, string | number>>;
  readonly idleMs: number;
  readonly signal?: AbortSignal | undefined;
}

export class HttpClient {
  readonly #base: URL;
  readonly #token: string;
  readonly #agent: HttpAgent;
  readonly #request: typeof httpRequest;

  constructor({ server, token }: HttpClientOptions) {
    this.#base = new URL(server);
    this.#token = token;
    const isSecure = this.#base.protocol === "https:";
    const options = { keepAlive: true, maxSockets: SOCKETS_MAX, noDelay: true };
    this.#agent = isSecure ? new HttpsAgent(options) : new HttpAgent(options);
    this.#request = isSecure ? httpsRequest : httpRequest;
  }

  /** @throws CPC_SERVER_UNREACHABLE where no answer came */
  async post(path: string, body: string, idleMs: number, signal?: AbortSignal): Promise<TextReply> {
    const bytes = Buffer.from(body);
    const headers = { "content-type": "application/json", "content-length": bytes.byteLength };
    const call: Call = { method: "POST", path, headers, idleMs, signal };
    const response = await this.#open(call, (outgoing) => outgoing.end(bytes));
    return { status: response.statusCode ?? 0, text: await readText(response) };
  }

  /** @throws the server's problem, or CPC_SERVER_UNREACHABLE */
  async putFile(
    path: string,
    file: string,
    sizeBytes: number,
    headers: Readonly<Record<string, string>>,
    signal?: AbortSignal,
  ): Promise<void> {
    const call: Call = {
      method: "PUT",
      path,
      headers: {
        ...headers,
        "content-type": "application/octet-stream",
        "content-length": sizeBytes,
      },
      idleMs: TRANSFER_IDLE_MS,
      signal,
    };
    const response = await this.#open(call, (outgoing) => {
      // An error of the socket is reported by the request itself; one of the file ends the request.
      pipeline(createReadStream(file), outgoing).catch((error: Error) => outgoing.destroy(error));
    });
    const text = await readText(response);
    throwUnlessOk({ status: response.statusCode ?? 0, text });
  }

  /**
   * @param sha256 digest that the file must have; undefined where it is not known
   * @throws CPC_ARTIFACT_CORRUPT, the server's problem, or CPC_SERVER_UNREACHABLE
   */
  async getFile(
    path: string,
    file: string,
    sha256: string | undefined,
    headers: Readonly<Record<string, string>>,
    signal?: AbortSignal,
  ): Promise<void> {
    const call: Call = { method: "GET", path, headers, idleMs: TRANSFER_IDLE_MS, signal };
    const response = await this.#open(call, (outgoing) => outgoing.end());
    if (response.statusCode !== 200) {
      throwUnlessOk({ status: response.statusCode ?? 0, text: await readText(response) });
    }
    const partial = `${file}.part`;
    const hash = createHash("sha256");
    try {
      response.on("data", (chunk: Buffer) => hash.update(chunk));
      await pipeline(response, createWriteStream(partial));
    } catch (cause) {
      await rm(partial, { force: true });
      throw unreachable(cause);
    }
    const digest = hash.digest("hex");
    if (sha256 !== undefined && digest !== sha256) {
      await rm(partial, { force: true });
      throw new CoppiceError("CPC_ARTIFACT_CORRUPT", {
        detail: `expected the digest ${sha256}. Received: ${digest}`,
      });
    }
    await rename(partial, file);
  }

  close(): void {
    this.#agent.destroy();
  }

  async #open(
    call: Call,
    start: (outgoing: ReturnType<typeof httpRequest>) => void,
  ): Promise<IncomingMessage> {
    return await new Promise<IncomingMessage>((resolve, reject) => {
      const outgoing = this.#request(
        new URL(call.path, this.#base),
        {
          method: call.method,
          agent: this.#agent,
          headers: { ...call.headers, authorization: `Bearer ${this.#token}` },
          ...(call.signal === undefined ? {} : { signal: call.signal }),
        },
        resolve,
      );
      outgoing.setTimeout(call.idleMs, () => {
        outgoing.destroy(new Error(`no byte for ${call.idleMs} ms`));
      });
      outgoing.on("error", (error) => reject(unreachable(error)));
      start(outgoing);
    });
  }
}

const unreachable = (cause: unknown): CoppiceError =>
  new CoppiceError("CPC_SERVER_UNREACHABLE", {
    detail: cause instanceof Error ? cause.message : String(cause),
    cause,
  });

/** By events, not by iteration: this runs for every exchange. */
const readText = async (response: IncomingMessage): Promise<string> =>
  await new Promise<string>((resolve, reject) => {
    const chunks: Buffer[] = [];
    let sizeBytes = 0;
    response.on("data", (chunk: Buffer) => {
      sizeBytes += chunk.byteLength;
      chunks.push(chunk);
      if (sizeBytes <= JSON_BYTES_MAX) return;
      response.destroy(new Error(`an answer above ${JSON_BYTES_MAX} bytes`));
    });
    response.on("end", () => resolve(Buffer.concat(chunks).toString("utf8")));
    response.on("error", (error) => reject(unreachable(error)));
    response.on("close", () => reject(unreachable(new Error("the answer broke off"))));
  });

/** The error that a reply stands for. */
export const problemOf = ({ status, text }: TextReply): CoppiceError => {
  try {
    return fromProblem(status, JSON.parse(text));
  } catch {
    return fromProblem(status, undefined);
  }
};

const throwUnlessOk = (reply: TextReply): void => {
  if (reply.status < 200 || reply.status >= 300) throw problemOf(reply);
};

/** Whether the same request may succeed later: no answer, an overloaded or broken server. */
export const isTransient = (error: unknown): boolean => {
  if (!(error instanceof CoppiceError)) return false;
  // The server answers, and space does not come by asking again: the step must hear of it.
  if (error.code === "CPC_DISK_FULL") return false;
  const status = error.data["status"];
  return error.isRetryable || (typeof status === "number" && (status >= 500 || status === 429));
};
