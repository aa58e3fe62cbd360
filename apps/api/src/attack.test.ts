/** What somebody tries who has a token, a worker, or nothing but the address. */
import { randomUUID } from "node:crypto";
import { connect } from "node:net";
import { type Client, createClient } from "@coppice/contract";
import { CoppiceError, isCoppiceError, type RunId } from "@coppice/core";
import { insertToken } from "@coppice/store";
import { type HandWorker, registerHandWorker } from "@coppice/testing";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { deployOver, openTestApi, overHttp, sha256, type TestApi } from "../testing/test-api.ts";
import { buildApp } from "./app.ts";
import { FAILURES_PER_MINUTE } from "./failure-limit.ts";
import { mintToken } from "./token.ts";

const pipeline = { irVersion: 1 as const, name: "one", params: {}, steps: [{ key: "only" }] };
const bearer = (token: string) => ({ authorization: `Bearer ${token}` });
const HOST = "10.20.30.40:5432";

let api: TestApi;
beforeAll(async () => {
  api = await openTestApi({ withBoard: true });
  await deployOver(await api.client(), [
    { ...pipeline, params: { type: "object", additionalProperties: true } },
  ]);
});
afterAll(async () => {
  await api[Symbol.asyncDispose]();
});

const codeOf = async (call: Promise<unknown>): Promise<string> =>
  await call.then(
    () => "ok",
    (error: unknown) => (isCoppiceError(error) ? error.code : String(error)),
  );

describe("bodies", () => {
  const deep = (levels: number): string => `${"[".repeat(levels)}${"]".repeat(levels)}`;
  const post = async (url: string, token: string, payload: string) => {
    const response = await api.app.inject({
      method: "POST",
      url,
      headers: { ...bearer(token), "content-type": "application/json" },
      payload,
    });
    return `${response.statusCode} ${response.json<{ code?: string }>().code ?? ""}`;
  };

  test("a value nested deeply is refused as input wherever JSON is taken, and by every depth", async () => {
    const { worker, submit, deploy } = api.tokens;
    for (const levels of [300, 2000, 5000, 8000, 100_000]) {
      const value = deep(levels);
      const item = { type: "finish", runId: randomUUID(), lease: randomUUID() };
      const finish = `${JSON.stringify(item).slice(0, -1)},"step":0,"item":0,"attempt":1,"outcome":{"type":"succeeded","artifacts":[],"output":${value}}}`;
      const answers = [
        await post("/v1/runs", submit, `{"pipeline":"one","params":{"a":${value}}}`),
        await post("/v1/runs", submit, value),
        await post(
          "/v1/pipelines",
          deploy,
          `{"bundleDigest":"${sha256("bundle")}","pipelines":[],"manifest":{"a":${value}}}`,
        ),
        await post(
          `/v1/workers/${randomUUID()}/exchange`,
          worker,
          `{"lane":"work","items":[${finish}]}`,
        ),
      ];
      expect([levels, ...new Set(answers)]).toEqual([levels, "400 CPC_INVALID_INPUT"]);
    }
    // As deep as a step's output may be.
    expect(await post("/v1/runs", submit, `{"pipeline":"one","params":{"a":${deep(200)}}}`)).toBe(
      "201 ",
    );
  });

  test("a megabyte of numbers that are none, or of keys, costs neither seconds nor memory", async () => {
    const numbers = `[${Array.from({ length: 170_000 }, () => "1e999").join(",")}]`;
    const keys = Array.from({ length: 100_000 }, (_, index) => `"${index}":0`).join(",");
    const before = process.memoryUsage().rss;
    const startedMs = performance.now();
    const { submit } = api.tokens;
    expect(await post("/v1/runs", submit, `{"pipeline":"one","params":{"a":${numbers}}}`)).toBe(
      "400 CPC_INVALID_INPUT",
    );
    expect(await post("/v1/runs", submit, `{"pipeline":"one",${keys}}`)).toBe(
      "400 CPC_INVALID_INPUT",
    );
    expect(performance.now() - startedMs).toBeLessThan(2000);
    expect(process.memoryUsage().rss - before).toBeLessThan(200 * 1024 * 1024);
  });

  test("without a credential nobody is waited for: the answer comes before the body", async () => {
    const { port } = new URL(await api.listen());
    const socket = connect({ host: "127.0.0.1", port: Number(port) });
    const answer = await new Promise<string>((resolve, reject) => {
      socket.once("data", (bytes: Buffer) => resolve(bytes.toString()));
      socket.once("error", reject);
      socket.write(
        `PUT /v1/bundles/${sha256("x")} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000000\r\n\r\nx`,
      );
    });
    socket.destroy();
    expect(answer).toMatch(/^HTTP\/1\.1 401 /);
  });

  test("a name with dots, slashes, zero bytes or line breaks reaches no file and no header", async () => {
    const strange = ["..%2f..%2fetc%2fpasswd", "%2e%2e", "a%00b", "%0d%0ax-evil:%201", "%5c..%5c"];
    for (const name of strange) {
      for (const url of [
        `/v1/artifacts/${name}`,
        `/v1/pipelines/${name}`,
        `/v1/pools/${name}`,
        `/v1/runs/${name}xxxx`,
      ]) {
        const response = await api.app.inject({ url, headers: bearer(api.tokens.read) });
        expect([url, [400, 404].includes(response.statusCode)]).toEqual([url, true]);
        expect(response.headers["x-evil"]).toBeUndefined();
        expect(response.headers["x-content-type-options"]).toBe("nosniff");
      }
    }
  });
});

describe("a worker and the attempts of another", () => {
  /** A worker over HTTP, under a token of its own. */
  const newWorker = async (): Promise<{ client: Client; hand: HandWorker }> => {
    const { id, text, secretSha256 } = mintToken();
    await insertToken(api.world.db, {
      id,
      projectId: null,
      name: `worker ${id}`,
      scope: "worker",
      secretSha256,
      expiresInMs: null,
    });
    const client = createClient({ server: await api.listen(), token: text });
    const engine = overHttp(client) as unknown as typeof api.world.engine;
    const { db, workerTokenId } = api.world;
    return { client, hand: await registerHandWorker({ engine, db, workerTokenId }) };
  };

  test("bytes are given to the token that began the attempt, even where the lease is known", async () => {
    const [own, other] = [await newWorker(), await newWorker()];
    const submitter = await api.client();
    const { id } = await submitter.runs.submit({ body: { pipeline: "one" } });
    const [row] = await api.world.db.query<{ id: RunId }>(
      "select id from run order by id desc limit 1",
    );
    const runId = row?.id ?? ("" as RunId);
    const assignment = await own.hand.start(runId, 0);
    const { step, item, attempt, lease } = assignment;
    const ask = async (client: Client, worker: string, sent: string): Promise<string> => {
      const params = { worker, run: runId, step, item, attempt };
      return await codeOf(
        client.workers.getBundle({ params, headers: { "x-coppice-lease": sent } }),
      );
    };
    expect(await ask(own.client, own.hand.workerId, lease)).toBe("ok");
    expect(await ask(own.client, own.hand.workerId, randomUUID())).toBe("CPC_SUPERSEDED");
    expect(await ask(other.client, own.hand.workerId, lease)).toBe("CPC_WORKER_NOT_FOUND");
    expect(await ask(other.client, other.hand.workerId, lease)).toBe("CPC_SUPERSEDED");
    // The same worker after the server forgot it: it goes on with what it runs.
    const engine = overHttp(own.client) as unknown as typeof api.world.engine;
    const again = await registerHandWorker({ ...api.world, engine });
    expect(await ask(own.client, again.workerId, lease)).toBe("ok");

    const succeeded = { type: "succeeded" as const, output: null, artifacts: [] };
    const guessed = { ...own.hand.finishOf(assignment, succeeded), lease: randomUUID() };
    expect(await other.hand.send(guessed)).toEqual({ type: "superseded" });
    const asOther = other.client.workers.exchange({
      params: { worker: own.hand.workerId },
      body: { lane: "work", items: [own.hand.finishOf(assignment, succeeded)] },
    });
    expect(await codeOf(asOther)).toBe("CPC_WORKER_NOT_FOUND");
    expect((await submitter.runs.get({ params: { run: id } })).state).toBe("running");
    expect(await again.send(again.finishOf(assignment, succeeded))).toEqual({ type: "accepted" });
  });

  test("knowing a digest of another project gives neither its bytes nor its code", async () => {
    const secret = "weights of the other project";
    const digest = sha256(secret);
    const stranger = createClient({
      server: await api.listen(),
      token: await api.tokenOf("stranger", "deploy"),
    });
    await stranger.bundles.put({ params: { digest }, body: new Blob([secret]) });
    const client = await api.client();
    expect(
      await codeOf(
        client.pipelines.deploy({ body: { bundleDigest: digest, pipelines: [pipeline] } }),
      ),
    ).toBe("CPC_BUNDLE_NOT_FOUND");
    expect(await codeOf(client.artifacts.get({ params: { sha256: digest } }))).toBe(
      "CPC_ARTIFACT_NOT_FOUND",
    );
    const own = await newWorker();
    await client.runs.submit({ body: { pipeline: "one" } });
    const [row] = await api.world.db.query<{ id: RunId }>(
      "select id from run order by id desc limit 1",
    );
    const runId = row?.id ?? ("" as RunId);
    const assignment = await own.hand.start(runId, 0);
    const { step, item, attempt, lease } = assignment;
    const params = { worker: own.hand.workerId, run: runId, step, item, attempt, sha256: digest };
    const headers = { "x-coppice-lease": lease };
    expect(await codeOf(own.client.workers.getArtifact({ params, headers }))).toBe(
      "CPC_ARTIFACT_NOT_FOUND",
    );
    const named = { sha256: digest, sizeBytes: 1, name: "mine", kind: "file", metadata: {} };
    const claim = own.hand.finishOf(assignment, {
      type: "succeeded",
      output: { $artifact: named },
      artifacts: [named],
    });
    expect(await own.hand.send(claim)).toMatchObject({
      type: "problem",
      code: "CPC_ARTIFACT_NOT_FOUND",
    });
    // A placeholder that is not listed is stored as it is, and opens nothing.
    const unlisted = own.hand.finishOf(assignment, {
      type: "succeeded",
      output: { $artifact: named },
      artifacts: [],
    });
    expect(await own.hand.send(unlisted)).toEqual({ type: "accepted" });
    expect(await codeOf(client.artifacts.get({ params: { sha256: digest } }))).toBe(
      "CPC_ARTIFACT_NOT_FOUND",
    );
  });
});

test("a log, an error and a name with markup or escapes are data, never a page", async () => {
  const client = await api.client();
  const evil = "<img src=x onerror=alert(1)>\u001B[2J";
  const { id } = await client.runs.submit({ body: { pipeline: "one", reason: evil } });
  for (const url of [`/v1/runs/${id}`, "/v1/runs", `/v1/pipelines/${encodeURIComponent(evil)}`]) {
    const response = await api.app.inject({ url, headers: bearer(api.tokens.read) });
    expect(response.headers["content-type"]).toMatch(/^application\/(problem\+)?json/);
    expect(response.headers["x-content-type-options"]).toBe("nosniff");
    expect(response.headers["content-security-policy"]).toContain("default-src 'none'");
    expect(response.body).not.toContain("\u001B");
  }
  for (const url of ["/queues", "/docs/"]) {
    const page = await api.app.inject({ url, headers: bearer(api.tokens.read) });
    expect(page.headers["content-security-policy"]).not.toMatch(/script-src[^;]*unsafe/);
    expect(page.body).not.toContain("onerror");
  }
});

test("where the database is, is told to callers that we know and to nobody else", async () => {
  const away = async (): Promise<never> => {
    throw new CoppiceError("CPC_DATABASE_UNREACHABLE", { detail: `connect ECONNREFUSED ${HOST}` });
  };
  const app = await buildApp({
    ...api.deps,
    openBoard: undefined,
    db: { ...api.deps.db, query: away },
  });
  for (const [url, headers] of [
    ["/readyz", {}],
    ["/sign-in?code=x", {}],
    ["/v1/runs", bearer(api.tokens.read)],
  ] as const) {
    const response = await app.inject({ url, headers });
    expect([url, response.statusCode]).toEqual([url, 503]);
    expect(response.body).not.toContain(HOST);
  }
  await app.close();
});

test("a flood of unknown tokens is not looked up, and locks nobody out who was there before", async () => {
  const fresh = await openTestApi();
  try {
    const ask = async (token: string, from = "192.0.2.7"): Promise<number> =>
      (await fresh.app.inject({ url: "/v1/runs", headers: bearer(token), remoteAddress: from }))
        .statusCode;
    const { read, submit } = fresh.tokens;
    expect(await ask(read)).toBe(200);
    const flood = Array.from({ length: FAILURES_PER_MINUTE }, () => mintToken().text);
    for (const token of flood) expect(await ask(token)).toBe(401);
    expect(await ask(mintToken().text)).toBe(429);
    expect(await ask(read), "was good before").toBe(200);
    expect(await ask(submit), "never seen here").toBe(429);
    expect(await ask(submit, "192.0.2.8"), "from elsewhere").toBe(200);
    expect(await ask(submit), "is known from then on").toBe(200);
  } finally {
    await fresh[Symbol.asyncDispose]();
  }
});
