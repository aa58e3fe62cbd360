import { Agent, request } from "node:http";
import { silentLogger } from "@coppice/core";
import { operationIds, routeOf, SCOPES } from "@coppice/contract";
import Fastify from "fastify";
import { afterAll, beforeAll, expect, test } from "vitest";
import { openTestApi, type TestApi } from "../testing/test-api.ts";
import { addGuard } from "./guard.ts";

let api: TestApi;
beforeAll(async () => {
  api = await openTestApi({ withBoard: true });
});
afterAll(async () => {
  agent.destroy();
  await api[Symbol.asyncDispose]();
});

/** Over a socket, because anything that takes a URL would tidy it up. */
const agent = new Agent({ keepAlive: true, maxSockets: 1 });
const ask = async (method: string, path: string): Promise<number> => {
  const { port } = new URL(await api.listen());
  return await new Promise((resolve, reject) => {
    const asked = request({ host: "127.0.0.1", port, method, path, agent }, (response) => {
      response.resume();
      response.once("end", () => resolve(response.statusCode ?? 0));
    });
    asked.once("error", reject);
    asked.end();
  });
};

const PUBLIC = new Set(["/livez", "/readyz", "/sign-in"]);
const filled = (path: string): string => path.replaceAll(/\{\w+\}/g, "x");

const variantsOf = (path: string): string[] => [
  path,
  `${path}/`,
  `/${path}`,
  path.replace("/", "//"),
  path.replace(/\/([a-z])/, "/%2e/$1"),
  path.replace(/\/([a-z])/, "/%2e%2e/$1"),
  path.replace(/\/([a-z])/, (_match, letter: string) => `/%${letter.charCodeAt(0).toString(16)}`),
  `${path};x`,
  path.toUpperCase(),
];

const extra = [
  "/queues",
  "/queues/api/queues",
  "/queues/static/x.js",
  "/docs",
  "/docs/",
  "/docs/js/scalar.js",
];

test("nothing but the public routes answers without a credential, however it is written", async () => {
  const paths = [...new Set([...operationIds.map((id) => filled(routeOf(id).path)), ...extra])];
  let count = 0;
  const open: string[] = [];
  for (const path of paths) {
    for (const url of variantsOf(path)) {
      for (const method of ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"] as const) {
        const statusCode = await ask(method, url);
        count += 1;
        const isPublic = PUBLIC.has(decodeURIComponent(url)) && ["GET", "HEAD"].includes(method);
        if (isPublic) continue;
        if (![401, 404, 405, 421].includes(statusCode)) open.push(`${method} ${url} ${statusCode}`);
      }
    }
  }
  process.stdout.write(`route walk: ${paths.length} paths, ${count} requests\n`);
  expect(open).toEqual([]);
  expect(count).toBeGreaterThan(2000);
});

test("a route that names no scope keeps the server from starting", async () => {
  const app = Fastify();
  const access = { identify: async () => undefined, projectOf: async () => Promise.reject() };
  addGuard(app, { access, allowedHosts: [], logger: silentLogger });
  expect(() => app.get("/open", async () => "hello")).toThrow(/expected a scope/);
  await app.close();
});

/** Which scopes may call a route that needs this one. */
const HOLDERS: Readonly<Record<string, readonly string[]>> = {
  read: ["read", "submit", "deploy", "admin"],
  submit: ["submit", "deploy", "admin"],
  deploy: ["deploy", "admin"],
  worker: ["worker", "admin"],
  admin: ["admin"],
};

test("a token gets past the gate of exactly the routes that its scope covers", async () => {
  const wrong: string[] = [];
  for (const id of operationIds) {
    const { method, path, scope } = routeOf(id);
    if (scope === "public") continue;
    for (const held of SCOPES) {
      const response = await api.app.inject({
        method,
        url: filled(path),
        headers: {
          authorization: `Bearer ${api.tokens[held]}`,
          ...(held === "admin" ? { "x-coppice-project": "test" } : {}),
        },
      });
      const isRefused = response.statusCode === 403;
      const isAllowed = (HOLDERS[scope] ?? []).includes(held);
      if (isRefused === isAllowed) wrong.push(`${id} ${held} ${response.statusCode}`);
    }
  }
  expect(wrong).toEqual([]);
});

test("read looks at Bull Board, only admin changes it", async () => {
  const call = async (method: "GET" | "PUT", scope: "read" | "deploy" | "admin", url: string) =>
    (
      await api.app.inject({
        method,
        url,
        headers: { authorization: `Bearer ${api.tokens[scope]}` },
      })
    ).statusCode;
  expect(await call("GET", "read", "/queues")).toBe(200);
  expect(await call("GET", "read", "/queues/api/queues")).toBe(200);
  for (const scope of ["read", "deploy"] as const) {
    expect(await call("PUT", scope, "/queues/api/queues/cpu/pause")).toBe(403);
  }
  expect(await call("PUT", "admin", "/queues/api/queues/none/pause")).toBe(404);
});

test("the documentation is served from here alone, under a policy that says so", async () => {
  const headers = { authorization: `Bearer ${api.tokens.read}` };
  const page = await api.app.inject({ url: "/docs/", headers });
  expect(page.statusCode).toBe(200);
  const policy = String(page.headers["content-security-policy"]);
  expect(policy).toContain("default-src 'none'");
  expect(policy).not.toMatch(/https?:/);
  expect(page.body).not.toMatch(/(src|href)="https?:/);
  const nonce = /'nonce-([^']+)'/.exec(policy)?.[1];
  const inline: boolean[] = [];
  for (const [tag] of page.body.matchAll(/<script[^>]*>/g)) {
    if (!tag.includes("src=") && !tag.includes("application/json")) {
      inline.push(tag.includes(`nonce="${nonce ?? "none"}"`));
    }
  }
  expect(new Set(inline)).toEqual(new Set([true]));
  const script = await api.app.inject({ url: "/docs/js/scalar.js", headers });
  expect(script.statusCode).toBe(200);
  const openapi = await api.app.inject({ url: "/openapi.json", headers });
  expect(openapi.json<{ openapi: string }>().openapi).toBe("3.1.0");
});
