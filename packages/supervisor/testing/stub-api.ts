/**
 * A small server that speaks the worker's side of the API over real HTTP: it hands out the
 * assignments that a test adds, records every item, and can be away, cancel and supersede.
 */
import { createHash, randomUUID } from "node:crypto";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo, Socket } from "node:net";

import {
  type Assignment,
  exchangeRequestSchema,
  type RegisterRequest,
  registerRequestSchema,
  type StreamItem,
  type WorkAnswer,
  type WorkItem,
} from "@coppice/contract";

export type Finish = Extract<WorkItem, { type: "finish" }>;
export type AssignmentInput = Partial<Omit<Assignment, "spec">> & {
  readonly spec?: Partial<Assignment["spec"]>;
};

export interface StubApiOptions {
  readonly leaseMs?: number;
  readonly heartbeatMs?: number;
  /** Checks every request by its schema; off for measurements. */
  readonly isStrict?: boolean;
}

const attemptOf = (ref: { runId: string; step: number; item: number; attempt: number }): string =>
  `${ref.runId}/${ref.step}/${ref.item}/${ref.attempt}`;

export class StubApi {
  readonly registrations: RegisterRequest[] = [];
  readonly work: WorkItem[] = [];
  readonly stream: StreamItem[] = [];
  readonly artifacts = new Map<string, Buffer>();
  readonly bundles = new Map<string, Uint8Array>();
  readonly joins = new Map<number, string>();
  /** Assignments that a finish with an offer may get. */
  readonly ready: Assignment[] = [];
  readonly leases = new Map<string, string>();
  bundleDownloads = 0;
  isAway = false;
  url = "";
  readonly #options: StubApiOptions;
  readonly #assignments = new Map<string, Assignment>();
  readonly #finishes = new Map<string, (finish: Finish) => void>();
  readonly #answered = new Map<string, WorkAnswer>();
  readonly #verdicts = new Map<string, "cancelled" | "superseded">();
  readonly #watchers = new Set<() => void>();
  readonly #sockets = new Set<Socket>();
  readonly #server = createServer((request, response) => {
    this.#serve(request, response).catch((error: unknown) => {
      response.writeHead(500).end(String(error));
    });
  });
  #workerId = randomUUID();

  constructor(options: StubApiOptions = {}) {
    this.#options = options;
    this.#server.on("connection", (socket) => {
      this.#sockets.add(socket);
      socket.on("close", () => this.#sockets.delete(socket));
      if (this.isAway) socket.destroy();
    });
  }

  async open(): Promise<this> {
    await new Promise<void>((resolve) => this.#server.listen(0, "127.0.0.1", resolve));
    this.url = `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
    return this;
  }

  async close(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  setAway(isAway: boolean): void {
    this.isAway = isAway;
    if (isAway) for (const socket of this.#sockets) socket.destroy();
  }

  /** Forgets the worker: the next exchange answers CPC_WORKER_NOT_FOUND. */
  forgetWorker(): void {
    this.#workerId = randomUUID();
  }

  addBundle(bytes: Uint8Array): string {
    const digest = createHash("sha256").update(bytes).digest("hex");
    this.bundles.set(digest, bytes);
    return digest;
  }

  addArtifact(bytes: Uint8Array | string): string {
    const data = Buffer.from(bytes);
    const digest = createHash("sha256").update(data).digest("hex");
    this.artifacts.set(digest, data);
    return digest;
  }

  /** @returns the assignment and its first finish */
  add(input: AssignmentInput): { assignment: Assignment; finished: Promise<Finish> } {
    const { spec, ...rest } = input;
    const assignment: Assignment = {
      runId: randomUUID(),
      step: 0,
      item: 0,
      attempt: 1,
      lease: randomUUID(),
      project: { id: "00000000-0000-4000-8000-000000000001", name: "demo" },
      pipeline: { name: "main", version: 1 },
      stepKey: "echo",
      bundleDigest: [...this.bundles.keys()][0] ?? "0".repeat(64),
      params: {},
      inputs: {},
      seed: "seed",
      ...rest,
      spec: {
        slots: 1,
        gpu: 0,
        isolation: "reuse",
        exclusive: false,
        env: [],
        ...spec,
        timeouts: { graceMs: 300, ...spec?.timeouts },
      },
    };
    const key = attemptOf(assignment);
    this.#assignments.set(key, assignment);
    const finished = new Promise<Finish>((resolve) => this.#finishes.set(key, resolve));
    return { assignment, finished };
  }

  settle(assignment: Assignment, verdict: "cancelled" | "superseded"): void {
    this.#verdicts.set(attemptOf(assignment), verdict);
  }

  logOf(assignment: Assignment): string {
    return this.stream
      .filter((item) => item.type === "log")
      .filter((item) => attemptOf(item) === attemptOf(assignment))
      .map(({ text }) => text)
      .join("");
  }

  /** Resolves when the condition holds; looked at after every request. */
  async until(condition: () => boolean, deadlineMs = 10_000): Promise<void> {
    if (condition()) return;
    await new Promise<void>((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#watchers.delete(check);
        reject(new Error(`not within ${deadlineMs} ms: ${condition.toString()}`));
      }, deadlineMs);
      const check = (): void => {
        if (!condition()) return;
        clearTimeout(timer);
        this.#watchers.delete(check);
        resolve();
      };
      this.#watchers.add(check);
    });
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = request.url ?? "";
    const chunks: Buffer[] = [];
    for await (const chunk of request as AsyncIterable<Buffer>) chunks.push(chunk);
    if (this.isAway) return void request.socket.destroy();
    const body = Buffer.concat(chunks);
    if (url === "/v1/workers") this.#register(body, response);
    else if (!url.startsWith(`/v1/workers/${this.#workerId}/`)) this.#unknownWorker(response);
    else if (url.endsWith("/exchange")) this.#exchange(body, response);
    else this.#bytes(request, url, body, response);
    for (const watcher of this.#watchers) watcher();
  }

  #register(body: Buffer, response: ServerResponse): void {
    this.registrations.push(registerRequestSchema.parse(JSON.parse(body.toString())));
    json(response, 201, {
      workerId: this.#workerId,
      leaseMs: this.#options.leaseMs ?? 15_000,
      heartbeatMs: this.#options.heartbeatMs ?? 100,
      doorbell: { kind: "redis", url: "redis://127.0.0.1:1", prefix: "stub" },
      classes: ["cpu"],
      clockSkewMs: 0,
    });
  }

  #unknownWorker(response: ServerResponse): void {
    const code = "CPC_WORKER_NOT_FOUND";
    json(response, 404, { type: `urn:coppice:error:${code}`, title: code, status: 404, code });
  }

  #exchange(body: Buffer, response: ServerResponse): void {
    const raw: unknown = JSON.parse(body.toString());
    const isStrict = this.#options.isStrict ?? true;
    const request = isStrict
      ? exchangeRequestSchema.parse(raw)
      : (raw as ReturnType<typeof exchangeRequestSchema.parse>);
    const answers =
      request.lane === "work"
        ? request.items.map((item) => this.#answerWork(item))
        : request.items.map((item) => this.#answerStream(item));
    json(response, 200, { answers });
  }

  #answerWork(item: WorkItem): WorkAnswer {
    this.work.push(item);
    const key = attemptOf(item);
    const verdict = this.#verdicts.get(key);
    if (verdict === "superseded") return { type: "superseded" };
    if (item.type === "noSlot") return { type: "accepted" };
    if (item.type === "start") {
      const assignment = this.#assignments.get(key);
      const holder = this.leases.get(key);
      if (assignment === undefined || (holder !== undefined && holder !== item.lease)) {
        return { type: "superseded" };
      }
      this.leases.set(key, item.lease);
      return { type: "started", assignment: { ...assignment, lease: item.lease } };
    }
    if (this.leases.get(key) !== item.lease) return { type: "superseded" };
    const before = this.#answered.get(key);
    if (before !== undefined) return before;
    this.#finishes.get(key)?.(item);
    const ready = item.offer === undefined ? undefined : this.ready.shift();
    let answer: WorkAnswer = { type: "accepted" };
    if (ready !== undefined && item.offer !== undefined) {
      this.leases.set(attemptOf(ready), item.offer.lease);
      answer = { type: "accepted", next: { ...ready, lease: item.offer.lease } };
    }
    if (this.#options.isStrict !== false) this.#answered.set(key, answer);
    return answer;
  }

  #answerStream(item: StreamItem) {
    this.stream.push(item);
    if (item.type === "worker") return { type: "ok" };
    const verdict = this.#verdicts.get(attemptOf(item));
    if (verdict === "cancelled") return { type: "cancelled", reason: "by a test" };
    return { type: verdict ?? "ok" };
  }

  #bytes(request: IncomingMessage, url: string, body: Buffer, response: ServerResponse): void {
    const [, attempt = "", kind, name = ""] =
      /attempts\/([^/]+\/\d+\/\d+\/\d+)\/([a-z]+)\/?(\w*)$/.exec(url) ?? [];
    if (request.headers["x-coppice-lease"] !== this.leases.get(attempt)) {
      const code = "CPC_SUPERSEDED";
      json(response, 409, { type: `urn:coppice:error:${code}`, title: code, status: 409, code });
      return;
    }
    if (request.method === "PUT") {
      this.artifacts.set(name, body);
      return json(response, 201, { sha256: name, sizeBytes: body.byteLength });
    }
    if (kind === "bundle") this.bundleDownloads += 1;
    const digest = this.#assignments.get(attempt)?.bundleDigest ?? "";
    const bytes =
      kind === "bundle"
        ? this.bundles.get(digest)
        : kind === "joins"
          ? this.joins.get(Number(name))
          : this.artifacts.get(name);
    if (bytes === undefined) {
      const code = "CPC_ARTIFACT_NOT_FOUND";
      json(response, 404, { type: `urn:coppice:error:${code}`, title: code, status: 404, code });
      return;
    }
    response.writeHead(200).end(bytes);
  }
}

const json = (response: ServerResponse, status: number, value: unknown): void => {
  response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(value));
};
