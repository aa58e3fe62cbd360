/**
 * Questions of a child to its supervisor: store this file, fetch those bytes, fetch that join.
 * Bytes lie in files of the attempt's folder; only names and digests travel.
 */
import { createHash } from "node:crypto";
import { createReadStream, createWriteStream, mkdirSync } from "node:fs";
import { copyFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";

import { CoppiceError, isErrorCode } from "@coppice/core";

import type { FromChild, ToChild } from "../child-wire.ts";

type Reply = Extract<ToChild, { type: "reply" }>;
type Question =
  | Omit<Extract<FromChild, { type: "upload" }>, "serial" | "id">
  | Omit<Extract<FromChild, { type: "download" }>, "serial" | "id">
  | Omit<Extract<FromChild, { type: "join" }>, "serial" | "id">;

export interface StoredFile {
  readonly file: string;
  readonly sha256: string;
  readonly sizeBytes: number;
}

export type Bytes = Uint8Array | string | AsyncIterable<Uint8Array> | { readonly file: string };

/** One attempt's questions and files. */
export class Requests {
  hasDir = false;
  #lastId = 0;
  #lastFile = 0;
  readonly #dir: string;
  readonly #send: (question: Question & { id: number }) => void;
  readonly #waiting = new Map<number, (reply: Reply) => void>();
  readonly #downloads = new Map<string, Promise<string>>();

  constructor(dir: string, send: (question: Question & { id: number }) => void) {
    this.#dir = dir;
    this.#send = send;
  }

  onReply(reply: Reply): void {
    this.#waiting.get(reply.id)?.(reply);
    this.#waiting.delete(reply.id);
  }

  /** The attempt's folder or one inside it, made on first use. */
  folder(name: string): string {
    const path = join(this.#dir, name);
    mkdirSync(path, { recursive: true });
    this.hasDir = true;
    return path;
  }

  /** Writes bytes to a file of the attempt's folder and digests them on the way. */
  async store(bytes: Bytes): Promise<StoredFile> {
    this.#lastFile += 1;
    const file = `put-${this.#lastFile}`;
    const path = join(this.folder("out"), file);
    if (typeof bytes === "string" || bytes instanceof Uint8Array) {
      const data = typeof bytes === "string" ? Buffer.from(bytes) : bytes;
      await writeFile(path, data);
      return { file, sha256: digestOf(data), sizeBytes: data.byteLength };
    }
    if ("file" in bytes) {
      await copyFile(bytes.file, path);
    } else {
      await pipeline(Readable.from(bytes), createWriteStream(path));
    }
    const hash = createHash("sha256");
    let sizeBytes = 0;
    for await (const chunk of createReadStream(path) as AsyncIterable<Buffer>) {
      hash.update(chunk);
      sizeBytes += chunk.byteLength;
    }
    return { file, sha256: hash.digest("hex"), sizeBytes };
  }

  async upload(stored: StoredFile, isCheckpoint: boolean): Promise<void> {
    await this.#ask({ type: "upload", ...stored, isCheckpoint });
  }

  /** A file with the artifact's bytes, checked against the digest by the supervisor. */
  async download(sha256: string): Promise<string> {
    return await this.#once(sha256, { type: "download", sha256 });
  }

  /** A file of lines of JSON: all outputs of a mapped step, in order. */
  async join(step: number): Promise<string> {
    return await this.#once(`join ${step}`, { type: "join", step });
  }

  async #once(key: string, question: Question): Promise<string> {
    let path = this.#downloads.get(key);
    if (path === undefined) {
      path = this.#ask(question);
      this.#downloads.set(key, path);
      // A failed fetch may be tried again by the step's code.
      path.catch(() => this.#downloads.delete(key));
    }
    return await path;
  }

  async #ask(question: Question): Promise<string> {
    this.hasDir = true;
    this.#lastId += 1;
    const id = this.#lastId;
    const reply = await new Promise<Reply>((resolve) => {
      this.#waiting.set(id, resolve);
      this.#send({ ...question, id });
    });
    if (reply.error !== undefined) {
      const { code, message } = reply.error;
      throw new CoppiceError(isErrorCode(code) ? code : "CPC_INTERNAL", { detail: message });
    }
    return reply.path ?? "";
  }
}

const digestOf = (data: Uint8Array): string => createHash("sha256").update(data).digest("hex");
