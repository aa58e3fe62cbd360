/** Streams and workers over real sockets. */
import { randomUUID } from "node:crypto";
import type { RunEvent } from "@coppice/contract";
import type { TokenId } from "@coppice/core";
import { isCoppiceError } from "@coppice/core";
import { startInlineWorker, succeeded, waitUntil } from "@coppice/testing";
import { afterAll, beforeAll, expect, test } from "vitest";
import {
  deployOver,
  openTestApi,
  overHttp,
  sha256,
  type TestApi,
  untilFinal,
} from "../testing/test-api.ts";

let api: TestApi;
beforeAll(async () => {
  api = await openTestApi();
  await deployOver(await api.client(), [
    {
      irVersion: 1,
      name: "mapped",
      params: {},
      steps: [
        { key: "list" },
        { key: "each", map: { over: { from: "output", step: "list", path: [] } } },
        { key: "end", inputs: { all: { from: "output", step: "each", path: ["n"] } } },
      ],
    },
    { irVersion: 1, name: "one", params: {}, steps: [{ key: "only" }] },
  ]);
});
afterAll(async () => {
  await api[Symbol.asyncDispose]();
});

test("a worker over HTTP carries a mapped run to its end; the feed has every change once", async () => {
  const client = await api.client();
  const workers = await api.client(api.tokens.worker);
  await using worker = await startInlineWorker({
    engine: overHttp(workers),
    doorbell: api.world.address,
    tokenId: "" as TokenId,
    slots: 4,
    execute: ({ stepKey, item }) =>
      stepKey === "list" ? succeeded("abcdefgh".split("")) : succeeded({ n: item }),
  });
  const { id } = await client.runs.submit({ body: { pipeline: "mapped" } });
  const events: RunEvent[] = [];
  for await (const event of client.events(id)) events.push(event);
  expect(events.map(({ seq }) => seq)).toEqual(events.map((_event, index) => index + 1));
  expect(events.at(-1)).toMatchObject({ step: null, state: "succeeded" });
  expect(
    events.filter((event) => event.step === "each" && event.state === "succeeded").length,
  ).toBe(8);
  const page = await client.runs.events({ params: { run: id }, query: { limit: 500 } });
  expect(page).toEqual({ items: events, isEnd: true });
  const outputs = await client.runs.outputs({
    params: { run: id },
    query: { step: "each", limit: 3 },
  });
  expect(outputs.items.map(({ output }) => output)).toEqual([{ n: 0 }, { n: 1 }, { n: 2 }]);
  expect((await client.steps.get({ params: { run: id, step: "each" } })).items.items.length).toBe(
    8,
  );
  expect((await client.workers.list()).items.map((row) => row.isAlive)).toContain(true);
  await worker.stop();
});

test("a stream that is cut anywhere goes on without a gap and without a second copy", async () => {
  const client = await api.client();
  const server = await api.listen();
  await using worker = await api.world.startWorker(2, ({ stepKey }) =>
    stepKey === "list" ? succeeded("abcd".split("")) : succeeded({ n: 1 }),
  );
  expect(worker.running()).toBe(0);
  const { id } = await client.runs.submit({ body: { pipeline: "mapped" } });
  await untilFinal(client, id);
  const readSome = async (after: number, count: number): Promise<number[]> => {
    const cut = new AbortController();
    const response = await fetch(`${server}/v1/runs/${id}/events`, {
      headers: {
        accept: "text/event-stream",
        authorization: `Bearer ${api.tokens.read}`,
        "last-event-id": String(after),
      },
      signal: cut.signal,
    });
    const text = await response.text();
    cut.abort();
    expect(text.endsWith("event: end\ndata: {}\n\n")).toBe(true);
    return [...text.matchAll(/^id: (\d+)$/gm)].map((match) => Number(match[1])).slice(0, count);
  };
  const seen: number[] = [];
  for (
    let part = await readSome(0, 3);
    part.length > 0;
    part = await readSome(seen.at(-1) ?? 0, 3)
  ) {
    seen.push(...part);
  }
  expect(seen).toEqual(seen.map((_seq, index) => index + 1));
  expect(seen.length).toBe((await client.runs.events({ params: { run: id } })).items.length);
});

test("logs are followed as they grow, to their end, and read again from any byte", async () => {
  const client = await api.client();
  const workers = await api.client(api.tokens.worker);
  let release: () => void = () => undefined;
  const held = new Promise<void>((resolve) => {
    release = resolve;
  });
  let tell: (text: string) => Promise<void> = async () => undefined;
  const http = overHttp(workers);
  await using worker = await startInlineWorker({
    engine: http,
    doorbell: api.world.address,
    tokenId: "" as TokenId,
    slots: 1,
    execute: async ({ runId, step, item, attempt, lease }, { workerId }) => {
      let offset = 0;
      tell = async (text) => {
        await http.stream(workerId, [
          { type: "log", runId, step, item, attempt, lease, offset, text },
        ]);
        offset += Buffer.byteLength(text);
      };
      await tell("first ü\n");
      await held;
      return succeeded(null);
    },
  });
  const { id } = await client.runs.submit({ body: { pipeline: "one" } });
  const attempt = { run: id, step: "only", item: 0, attempt: 1 };
  await waitUntil(async () => (await client.attempts.logs({ params: attempt })).text !== "", {
    what: "the first line",
  });
  const texts: string[] = [];
  const following = (async () => {
    for await (const chunk of client.logs(attempt)) texts.push(chunk.text);
  })();
  await waitUntil(() => texts.length > 0, { what: "the followed line" });
  await tell("second\n");
  release();
  await following;
  expect(texts.join("")).toBe("first ü\nsecond\n");
  const rest = await client.attempts.logs({ params: attempt, query: { offset: 9 } });
  expect(rest).toEqual({ offset: 9, nextOffset: 16, text: "second\n", isEnd: true });
  await worker.stop();
});

test("bytes move only for an attempt whose lease the worker holds", async () => {
  const workers = await api.client(api.tokens.worker);
  const client = await api.client();
  const sha = sha256("weights");
  const results: unknown[] = [];
  await using worker = await startInlineWorker({
    engine: overHttp(workers),
    doorbell: api.world.address,
    tokenId: "" as TokenId,
    slots: 1,
    execute: async ({ runId, step, item, attempt, lease }, { workerId }) => {
      const params = { worker: workerId, run: runId, step, item, attempt };
      const headers = { "x-coppice-lease": lease };
      const wrong = { "x-coppice-lease": randomUUID() };
      const code = async (call: Promise<unknown>): Promise<string> =>
        await call.then(
          () => "ok",
          (error: unknown) => (isCoppiceError(error) ? error.code : String(error)),
        );
      const put = async (sent: Record<string, string>, text: string) =>
        await code(
          workers.workers.putArtifact({
            params: { ...params, sha256: sha },
            headers: sent,
            body: new Blob([text]),
          }),
        );
      const get = async () =>
        await code(workers.workers.getArtifact({ params: { ...params, sha256: sha }, headers }));
      results.push(await get(), await put(wrong, "weights"), await put(headers, "other"));
      results.push(await put(headers, "weights"), await get());
      const bundle = await workers.workers.getBundle({ params, headers });
      results.push(
        await bundle.text(),
        await code(workers.workers.getBundle({ params, headers: wrong })),
      );
      return {
        type: "succeeded",
        output: null,
        artifacts: [{ sha256: sha, sizeBytes: 7, name: "model", kind: "model", metadata: {} }],
      };
    },
  });
  const { id } = await client.runs.submit({ body: { pipeline: "one" } });
  expect((await untilFinal(client, id)).state).toBe("succeeded");
  expect(results).toEqual([
    "CPC_ARTIFACT_NOT_FOUND",
    "CPC_SUPERSEDED",
    "CPC_ARTIFACT_CORRUPT",
    "ok",
    "ok",
    "bundle",
    "CPC_SUPERSEDED",
  ]);
  const { items } = await client.runs.artifacts({ params: { run: id } });
  expect(items).toMatchObject([{ name: "model", sha256: sha, step: "only" }]);
  const bytes = await client.artifacts.get({ params: { sha256: sha } });
  expect(await bytes.text()).toBe("weights");
  await worker.stop();
});

test("a worker is heard only under the token that it registered with", async () => {
  const workers = await api.client(api.tokens.worker);
  const body = {
    protocol: 1,
    name: "w",
    host: "h",
    version: "1",
    labels: {},
    slots: 1,
    devices: [],
    clockMs: 0,
  };
  const { workerId } = await workers.workers.register({ body });
  const beat = { type: "worker" as const, freeSlots: 0, freeGpus: 0, isDraining: true };
  const call = { params: { worker: workerId }, body: { lane: "stream" as const, items: [beat] } };
  expect((await workers.workers.exchange(call)).answers.length).toBe(1);
  const admin = await api.client(api.tokens.admin);
  await expect(admin.workers.exchange(call)).rejects.toMatchObject({
    code: "CPC_WORKER_NOT_FOUND",
  });
  const wrong = workers.workers.register({ body: { ...body, protocol: 99 } });
  await expect(wrong).rejects.toMatchObject({ code: "CPC_PROTOCOL_VERSION" });
});
