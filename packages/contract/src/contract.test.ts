import { CoppiceError, ERRORS, isErrorCode } from "@coppice/core";
import { describe, expect, expectTypeOf, test } from "vitest";
import { createClient } from "./client.ts";
import type { Run } from "./entities.ts";
import { toOpenApi } from "./openapi.ts";
import { fromProblem, statusOf, toProblem } from "./problem.ts";
import { SCOPES } from "./route.ts";
import { operationIds, routeOf, ROUTES } from "./routes.ts";
import { parseServerEvents, resumeServerEvents } from "./sse.ts";

describe("the route table", () => {
  test("every part of a path has its schema, every route a scope, and no two the same address", () => {
    const seen = new Set<string>();
    for (const id of operationIds) {
      const { method, path, params, scope, body } = routeOf(id);
      const named = [...path.matchAll(/\{(\w+)\}/g)].map((match) => match[1]);
      expect([id, Object.keys(params?.shape ?? {}).toSorted()]).toEqual([id, named.toSorted()]);
      expect([...SCOPES, "public"]).toContain(scope);
      expect(seen.has(`${method} ${path}`)).toBe(false);
      seen.add(`${method} ${path}`);
      expect(method === "GET" && body !== undefined).toBe(false);
    }
  });

  test("the problems it names have a status of their own", () => {
    for (const id of operationIds) {
      for (const code of routeOf(id).problems ?? []) {
        expect([code, statusOf(code)]).not.toEqual([code, 500]);
      }
    }
  });

  test("OpenAPI has every route once, with its operation id and its scope", () => {
    const { paths } = toOpenApi(ROUTES) as {
      paths: Record<string, Record<string, { operationId: string }>>;
    };
    const ids = Object.values(paths).flatMap((methods) =>
      Object.values(methods).map(({ operationId }) => operationId),
    );
    expect(ids.toSorted()).toEqual([...operationIds].toSorted());
    expect(JSON.parse(JSON.stringify(paths))).toEqual(paths);
  });
});

test("an error survives the way through a problem", () => {
  for (const code of Object.keys(ERRORS).filter(isErrorCode)) {
    const error = new CoppiceError(code, {
      detail: "seven of nine",
      data: { errors: [{ pointer: "/a", message: "no" }] },
    });
    const problem = JSON.parse(JSON.stringify(toProblem(error, "/v1/x"))) as unknown;
    const back = fromProblem(statusOf(code), problem);
    expect([back.code, back.detail, back.hint]).toEqual([code, error.detail, error.hint]);
    expect(back.data["errors"]).toEqual([{ pointer: "/a", message: "no" }]);
  }
  expect(fromProblem(502, "<html>").code).toBe("CPC_INTERNAL");
});

describe("the client", () => {
  const answering =
    (status: number, body: unknown, seen: Request[] = []): typeof fetch =>
    async (input, init) => {
      seen.push(new Request(input, init));
      return new Response(JSON.stringify(body), { status });
    };

  test("sends what the route says and gives back what came", async () => {
    const seen: Request[] = [];
    const page = { items: [], nextCursor: null };
    const client = createClient({
      server: "http://h/",
      token: "t",
      project: "p",
      fetch: answering(200, page, seen),
    });
    expect(await client.runs.list({ query: { limit: 2, pipeline: "a b" } })).toEqual(page);
    expect(seen[0]?.url).toBe("http://h/v1/runs?limit=2&pipeline=a+b");
    expect(seen[0]?.headers.get("authorization")).toBe("Bearer t");
    expect(seen[0]?.headers.get("x-coppice-project")).toBe("p");
  });

  test("a path's values are never more than one part of it", async () => {
    const seen: Request[] = [];
    const client = createClient({ server: "http://h", fetch: answering(404, {}, seen) });
    await expect(client.runs.get({ params: { run: "../tokens?x" } })).rejects.toMatchObject({
      code: "CPC_INTERNAL",
    });
    expect(seen[0]?.url).toBe("http://h/v1/runs/..%2Ftokens%3Fx");
  });

  test("says that the server can't be reached, and that a reply is of another version", async () => {
    const away = createClient({ server: "http://127.0.0.1:1" });
    await expect(away.runs.list()).rejects.toMatchObject({ code: "CPC_SERVER_UNREACHABLE" });
    const other = createClient({ server: "http://h", fetch: answering(200, { items: 1 }) });
    await expect(other.runs.list()).rejects.toMatchObject({ code: "CPC_PROTOCOL_VERSION" });
  });

  test("is typed by the table", () => {
    const client = createClient({ server: "http://h" });
    expectTypeOf(client.runs.list).returns.resolves.toHaveProperty("items").toEqualTypeOf<Run[]>();
    expectTypeOf(client.tokens.revoke).returns.resolves.toEqualTypeOf<undefined>();
    expectTypeOf(client.artifacts.get).returns.resolves.toEqualTypeOf<Response>();
    // @ts-expect-error: a run has to be named.
    void (() => client.runs.get({ params: {} }));
    // @ts-expect-error: there is no such field.
    void (() => client.runs.submit({ body: { pipeline: "x", prams: {} } }));
    // @ts-expect-error: a body is needed.
    void (() => client.runs.submit());
  });
});

const bytes = (...parts: string[]): ReadableStream<Uint8Array> =>
  new ReadableStream({
    start: (controller) => {
      for (const part of parts) controller.enqueue(new TextEncoder().encode(part));
      controller.close();
    },
  });

describe("server-sent events", () => {
  test("are read however they are cut", async () => {
    const text =
      ': hi\n\nid: 1\ndata: {"ü":1}\n\nid: 2\r\nevent: x\r\ndata: a\r\ndata: b\r\n\r\n: end\n\n';
    const all = new TextEncoder().encode(text);
    for (let cut = 0; cut <= all.length; cut += 1) {
      const body = new ReadableStream<Uint8Array>({
        start: (controller) => {
          controller.enqueue(all.slice(0, cut));
          controller.enqueue(all.slice(cut));
          controller.close();
        },
      });
      const events = [];
      for await (const event of parseServerEvents(body)) events.push(event);
      expect(events).toEqual([
        { id: "1", event: "message", data: '{"ü":1}' },
        { id: "2", event: "x", data: "a\nb" },
      ]);
    }
  });

  test("go on after the last id when the stream breaks off, and stop at the end", async () => {
    const asked: (string | undefined)[] = [];
    const connect = async (last: string | undefined): Promise<Response> => {
      asked.push(last);
      if (asked.length === 2) throw new CoppiceError("CPC_SERVER_UNREACHABLE");
      const from = Number(last ?? 0) + 1;
      const event = `id: ${from}\ndata: ${from}\n\n`;
      return new Response(
        bytes(event, from === 3 ? "event: end\ndata: {}\n\n" : `id: ${from + 1}\nda`),
      );
    };
    const seen: string[] = [];
    for await (const { data } of resumeServerEvents(connect, undefined, undefined)) seen.push(data);
    expect(seen).toEqual(["1", "2", "3"]);
    expect(asked).toEqual([undefined, "1", "1", "2"]);
  });

  test("a refusal is thrown and not tried again", async () => {
    let count = 0;
    const connect = async (): Promise<Response> => {
      count += 1;
      throw new CoppiceError("CPC_RUN_NOT_FOUND");
    };
    const reading = resumeServerEvents(connect, undefined, undefined).next();
    await expect(reading).rejects.toMatchObject({ code: "CPC_RUN_NOT_FOUND" });
    expect(count).toBe(1);
  });
});
