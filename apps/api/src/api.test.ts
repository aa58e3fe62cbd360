import { isCoppiceError } from "@coppice/core";
import { failed, succeeded, waitUntil } from "@coppice/testing";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { deployOver, openTestApi, sha256, type TestApi, untilFinal } from "../testing/test-api.ts";

const pipeline = {
  irVersion: 1 as const,
  name: "letters",
  description: "two steps and a map",
  params: {
    type: "object",
    properties: {
      seed: { type: "integer", default: 7 },
      label: { type: "string", minLength: 2 },
    },
  },
  steps: [
    { key: "list" },
    {
      key: "each",
      inputs: { letter: { from: "item" as const, path: [] } },
      map: { over: { from: "output" as const, step: "list", path: ["letters"] } },
    },
    { key: "sum", inputs: { all: { from: "output" as const, step: "each", path: [] } } },
  ],
};

let api: TestApi;
const logged: string[] = [];
beforeAll(async () => {
  const log = (fields: object, message: string): void => {
    logged.push(JSON.stringify([fields, message]));
  };
  const logger = { debug: log, info: log, warn: log, error: log, child: () => logger };
  api = await openTestApi({ logger });
  await deployOver(await api.client(), [pipeline]);
});
afterAll(async () => {
  await api[Symbol.asyncDispose]();
});

const bearer = (token: string) => ({ authorization: `Bearer ${token}` });
const refusal = async (call: Promise<unknown>) => {
  try {
    await call;
  } catch (error) {
    if (isCoppiceError(error)) return error;
    throw error;
  }
  throw new Error("expected a refusal");
};

describe("deploying", () => {
  test("the same content is the same version, other content the next", async () => {
    const client = await api.client();
    const again = await deployOver(client, [pipeline]);
    expect(again.versions).toMatchObject([{ name: "letters", version: 1, isNew: false }]);
    const other = await deployOver(client, [{ ...pipeline, name: "other" }]);
    const changed = await deployOver(client, [{ ...pipeline, name: "other", timeoutMs: 5000 }]);
    expect(other.versions).toMatchObject([{ version: 1, isNew: true }]);
    expect(changed.versions).toMatchObject([{ version: 2, isNew: true }]);
    const detail = await client.pipelines.get({ params: { name: "other" } });
    expect(detail.versions.map(({ version }) => version)).toEqual([2, 1]);
  });

  test("bytes that do not have their digest are refused and leave nothing", async () => {
    const client = await api.client();
    const digest = sha256("expected");
    const put = client.bundles.put({ params: { digest }, body: new Blob(["other"]) });
    expect((await refusal(put)).code).toBe("CPC_BUNDLE_CORRUPT");
    const deploy = client.pipelines.deploy({
      body: { bundleDigest: digest, pipelines: [pipeline] },
    });
    expect((await refusal(deploy)).code).toBe("CPC_BUNDLE_NOT_FOUND");
  });

  test("a circle is refused by name and nothing of the deployment stays", async () => {
    const client = await api.client();
    const circle = {
      irVersion: 1 as const,
      name: "circle",
      params: {},
      steps: [
        { key: "a", after: ["b"] },
        { key: "b", after: ["a"] },
      ],
    };
    const error = await refusal(deployOver(client, [{ ...pipeline, name: "good" }, circle]));
    expect(error.code).toBe("CPC_PIPELINE_CYCLE");
    const { items } = await client.pipelines.list();
    expect(items.map(({ name }) => name)).not.toContain("good");
  });
});

describe("submitting", () => {
  test("defaults are filled in and the run is found under its location", async () => {
    const response = await api.app.inject({
      method: "POST",
      url: "/v1/runs",
      headers: bearer(api.tokens.submit),
      payload: { pipeline: "letters" },
    });
    expect(response.statusCode).toBe(201);
    expect(response.json()).toMatchObject({ pipeline: "letters", version: 1, params: { seed: 7 } });
    const url = String(response.headers["location"]);
    const run = await api.app.inject({ url, headers: bearer(api.tokens.read) });
    expect(run.json()).toMatchObject({
      id: response.json<{ id: string }>().id,
      steps: [
        { key: "list", total: 1 },
        { key: "each", state: "pending", total: null, isMapped: true, upstream: ["list"] },
        { key: "sum", state: "pending" },
      ],
    });
  });

  test("wrong parameters are named by pointer, unknown ones too", async () => {
    const response = await api.app.inject({
      method: "POST",
      url: "/v1/runs",
      headers: bearer(api.tokens.submit),
      payload: { pipeline: "letters", params: { seed: 1.5, label: "x", sede: 1 } },
    });
    expect(response.statusCode).toBe(422);
    expect(response.headers["content-type"]).toContain("application/problem+json");
    const problem = response.json<{ code: string; errors: { pointer: string }[] }>();
    expect(problem).toMatchObject({
      type: "urn:coppice:error:CPC_INVALID_PARAMS",
      status: 422,
      code: "CPC_INVALID_PARAMS",
      instance: "/v1/runs",
      hint: expect.any(String),
    });
    const pointers = problem.errors.map(({ pointer }) => pointer);
    expect(pointers).toEqual(expect.arrayContaining(["/params/seed", "/params/label"]));
    expect(JSON.stringify(problem.errors)).toContain("sede");
  });

  test("the same key gives the same run, another body under it is refused", async () => {
    const send = async (payload: object) =>
      await api.app.inject({
        method: "POST",
        url: "/v1/runs",
        headers: { ...bearer(api.tokens.submit), "idempotency-key": "once" },
        payload,
      });
    const both = await Promise.all([
      send({ pipeline: "letters", params: { seed: 1 } }),
      send({ pipeline: "letters", params: { seed: 1 } }),
    ]);
    const later = await send({ params: { seed: 1 }, pipeline: "letters" });
    expect([...both, later].map(({ statusCode }) => statusCode)).toEqual([201, 201, 201]);
    for (const response of both) expect(response.json()).toEqual(later.json());
    expect(later.headers["location"]).toBe(both[0]?.headers["location"]);
    expect(later.headers["idempotent-replayed"]).toBe("true");
    const other = await send({ pipeline: "letters", params: { seed: 2 } });
    expect(other.statusCode).toBe(422);
    expect(other.json()).toMatchObject({ code: "CPC_IDEMPOTENCY_MISMATCH" });
  });

  test("a run is found by any unique beginning or end, and by no other project", async () => {
    const client = await api.client();
    const { id } = await client.runs.submit({ body: { pipeline: "letters" } });
    const body = id.slice("run_".length);
    for (const run of [
      id,
      id.toUpperCase(),
      id.slice(0, 25),
      body.slice(0, 22),
      body.slice(-8),
      body.slice(-13),
      body.slice(-25),
    ]) {
      expect((await client.runs.get({ params: { run } })).id).toBe(id);
    }
    const common = await refusal(client.runs.get({ params: { run: id.slice(0, 8) } }));
    expect(common.code).toBe("CPC_RUN_AMBIGUOUS");
    for (const run of ["run_zzzz", "zzzzzzzz", "%2e%2e", "iiii"]) {
      expect((await refusal(client.runs.get({ params: { run } }))).code).toBe("CPC_RUN_NOT_FOUND");
    }
    const stranger = await api.client(await api.tokenOf("stranger", "read"));
    for (const run of [id, body.slice(-8)]) {
      expect((await refusal(stranger.runs.get({ params: { run } }))).code).toBe(
        "CPC_RUN_NOT_FOUND",
      );
    }
  });

  test("pages of runs go on where the last one ended", async () => {
    const client = await api.client();
    const ids: string[] = [];
    for (let index = 0; index < 5; index += 1) {
      const { id } = await client.runs.submit({ body: { pipeline: "other" } });
      ids.unshift(id);
    }
    const seen: string[] = [];
    let cursor: string | undefined;
    do {
      const page = await client.runs.list({
        query: { pipeline: "other", limit: 2, ...(cursor === undefined ? {} : { cursor }) },
      });
      seen.push(...page.items.map(({ id }) => id));
      cursor = page.nextCursor ?? undefined;
    } while (cursor !== undefined);
    expect(seen).toEqual(ids);
    const bad = await refusal(client.runs.list({ query: { cursor: "bm90IG91cnM" } }));
    expect(bad.code).toBe("CPC_INVALID_INPUT");
  });
});

describe("the gate", () => {
  test("a Host that is not ours is refused before anything else", async () => {
    const status = async (host: string) =>
      (await api.app.inject({ url: "/livez", headers: { host } })).statusCode;
    expect(await status("evil.example")).toBe(421);
    expect(await status("127.0.0.1.evil.example")).toBe(421);
    for (const host of ["127.0.0.1:4600", "localhost", "[::1]:4600", "coppice.example"]) {
      expect(await status(host)).toBe(200);
    }
  });

  test("a revoked token is refused within five seconds", async () => {
    const admin = await api.client(api.tokens.admin, "test");
    const made = await admin.tokens.create({ body: { name: "short", scope: "read" } });
    expect(made.project).toBe("test");
    const client = await api.client(made.token);
    await client.runs.list();
    await admin.tokens.revoke({ params: { id: made.id } });
    const started = performance.now();
    await waitUntil(
      async () => (await client.runs.list().catch((error) => error)) instanceof Error,
      {
        what: "the token to be refused",
        timeoutMs: 5000,
      },
    );
    expect(performance.now() - started).toBeLessThan(5000);
  });

  test("a code signs one browser in; its changes need our own origin", async () => {
    const client = await api.client(api.tokens.deploy);
    const { path } = await client.session.createCode();
    const first = await api.app.inject({ url: path });
    expect(first.statusCode).toBe(303);
    expect(first.headers.location).toBe("/queues");
    const cookie = String(first.headers["set-cookie"]);
    expect(cookie).toMatch(/HttpOnly/);
    expect(cookie).toMatch(/SameSite=Strict/);
    expect(cookie).not.toMatch(/Domain=/i);
    expect((await api.app.inject({ url: path })).statusCode).toBe(401);
    const session = { cookie: cookie.split(";")[0] ?? "" };
    expect((await api.app.inject({ url: "/v1/runs", headers: session })).statusCode).toBe(200);
    const submit = async (headers: Record<string, string>) =>
      (
        await api.app.inject({
          method: "POST",
          url: "/v1/runs",
          headers: { host: "127.0.0.1:4600", ...session, ...headers },
          payload: { pipeline: "letters" },
        })
      ).json<{ code?: string; id?: string }>();
    expect(await submit({})).toMatchObject({ code: "CPC_ORIGIN_NOT_ALLOWED" });
    for (const origin of ["https://evil.example", "http://127.0.0.1:4601", "null"]) {
      expect(await submit({ origin })).toMatchObject({ code: "CPC_ORIGIN_NOT_ALLOWED" });
    }
    expect((await submit({ origin: "http://127.0.0.1:4600" })).id).toMatch(/^run_/);
  });

  test("a credential in the query is no credential", async () => {
    const url = `/v1/runs?token=${api.tokens.read}&access_token=${api.tokens.read}`;
    expect((await api.app.inject({ url })).statusCode).toBe(401);
  });

  test("polluting bodies, broken JSON and bodies that are too large are problems", async () => {
    const post = async (payload: string) =>
      await api.app.inject({
        method: "POST",
        url: "/v1/runs",
        headers: { ...bearer(api.tokens.submit), "content-type": "application/json" },
        payload,
      });
    for (const payload of [
      '{"pipeline":"letters","__proto__":{"polluted":1}}',
      '{"pipeline":"letters","params":{"constructor":{"prototype":{"polluted":1}}}}',
      "{",
      '{"pipeline":"letters","extra":1}',
    ]) {
      const response = await post(payload);
      expect([response.statusCode, response.json<{ code: string }>().code]).toEqual([
        400,
        "CPC_INVALID_INPUT",
      ]);
    }
    expect(({} as { polluted?: unknown }).polluted).toBeUndefined();
    const large = await post(`{"pipeline":"${"x".repeat(1024 * 1024)}"}`);
    expect([large.statusCode, large.json<{ code: string }>().code]).toEqual([
      413,
      "CPC_BODY_TOO_LARGE",
    ]);
  });

  test("secrets stand in no row, no answer after the first and no log line", async () => {
    const admin = await api.client(api.tokens.admin);
    const { items } = await admin.tokens.list();
    const tables = await api.world.db.query<{ name: string }>(
      "select table_name as name from information_schema.tables where table_schema = 'public'",
    );
    const rows: string[] = [JSON.stringify(items), ...logged];
    for (const { name } of tables) {
      const found = await api.world.db.query(`select t::text as row from "${name}" t`);
      rows.push(...found.map((row) => String(row["row"])));
    }
    const all = rows.join("\n");
    for (const token of Object.values(api.tokens)) {
      expect(all).not.toContain(token);
      expect(all).not.toContain(token.split("_").slice(2).join("_"));
    }
  });
});

describe("one project and another", () => {
  test("every read of the one is a 404 under the other's token", async () => {
    await using worker = await api.world.startWorker(2, ({ stepKey }) =>
      stepKey === "list" ? succeeded({ letters: ["a", "b"] }) : succeeded({ ok: true }),
    );
    expect(worker.running()).toBe(0);
    const client = await api.client();
    const { id } = await client.runs.submit({ body: { pipeline: "letters" } });
    await untilFinal(client, id);
    await client.pools.put({ params: { name: "gpu" }, body: { capacity: 2 } });
    const sha = sha256("artifact");
    await api.world.db.query(
      `insert into artifact_ref (run_id, step, item, attempt, name, project_id, sha256, size_bytes,
         kind, metadata) select id, 0, 0, 1, 'model', project_id, $1, 8, 'file', '{}' from run limit 1`,
      [sha],
    );
    await api.deps.artifacts.put(sha, Buffer.from("artifact"));
    const urls = [
      `/v1/runs/${id}`,
      `/v1/runs/${id}/why`,
      `/v1/runs/${id}/events`,
      `/v1/runs/${id}/artifacts`,
      `/v1/runs/${id}/outputs`,
      `/v1/runs/${id}/steps/each`,
      `/v1/runs/${id}/steps/each/items/1`,
      `/v1/runs/${id}/steps/each/items/1/attempts/1/logs`,
      `/v1/runs/${id}/steps/each/items/1/attempts/1/logs/stream`,
      `/v1/runs/${id}/steps/each/items/1/attempts/1/metrics`,
      `/v1/artifacts/${sha}`,
      "/v1/pipelines/letters",
      "/v1/pools/gpu",
    ];
    const other = await api.tokenOf("tes", "deploy");
    for (const url of urls) {
      const own = await api.app.inject({ url, headers: bearer(api.tokens.read) });
      expect([url, own.statusCode]).toEqual([url, 200]);
      const foreign = await api.app.inject({ url, headers: bearer(other) });
      expect([url, foreign.statusCode]).toEqual([url, 404]);
      const crossed = { ...bearer(other), "x-coppice-project": "test" };
      expect((await api.app.inject({ url, headers: crossed })).statusCode).toBe(403);
    }
    for (const url of [`/v1/runs/${id}/cancel`, `/v1/runs/${id}/steps/each/cancel`]) {
      const foreign = await api.app.inject({ method: "POST", url, headers: bearer(other) });
      expect([url, foreign.statusCode]).toEqual([url, 404]);
    }
    for (const url of ["/v1/runs", "/v1/pipelines", "/v1/pools"]) {
      const list = await api.app.inject({ url, headers: bearer(other) });
      expect(list.json()).toEqual({ items: [], nextCursor: null });
    }
    const range = await api.app.inject({
      url: `/v1/artifacts/${sha}`,
      headers: { ...bearer(api.tokens.read), range: "bytes=3-5" },
    });
    expect([range.statusCode, range.body]).toEqual([206, "ifa"]);
  });
});

test("a failed run tells which step failed and why, with every attempt", async () => {
  await using worker = await api.world.startWorker(2, () => failed("no letters"));
  expect(worker.running()).toBe(0);
  const client = await api.client();
  const { id } = await client.runs.submit({ body: { pipeline: "letters" } });
  const run = await untilFinal(client, id);
  expect(run.state).toBe("failed");
  expect(run.steps.map(({ state }) => state)).toEqual([
    "failed",
    "upstream_failed",
    "upstream_failed",
  ]);
  const item = await client.items.get({ params: { run: id, step: "list", item: 0 } });
  expect(item.attempts).toMatchObject([
    { attempt: 1, outcome: "failed", error: { message: /no letters/ } },
  ]);
});
