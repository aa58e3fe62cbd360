/**
 * The pages that people open, in a real browser: Bull Board over both doorbells and the API's
 * documentation. What must stay true besides: nothing is asked of any machine but this one, and the
 * browser has nothing to refuse under the pages' own policy.
 *
 * Without a browser they are skipped with a line that says so; in CI that is a failure.
 */
import { existsSync } from "node:fs";
import { createClient } from "@coppice/contract";
import { type DoorbellKind, hasRedis, waitUntil } from "@coppice/testing";
import { type Browser, type BrowserContext, chromium, type Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { type Api, deploy, type Fleet, openFleet, projectToken } from "./fleet.ts";
import { newProject } from "./project.ts";

const PROGRAMS = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
const program = PROGRAMS.find((path) => existsSync(path));
const isCi = (process.env["CI"] ?? "") !== "";
if (program === undefined && !isCi) {
  process.stderr.write(`Tests of pages are skipped: none of ${PROGRAMS.join(", ")} is there.\n`);
}

const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

const CONFIG = `
import { definePipeline, defineProject, defineStep } from "@coppice/sdk";
const nothing = defineStep({ run: () => undefined });
export default defineProject({
  name: "pages",
  pipelines: [definePipeline({ name: "one", steps: ({ step }) => void step("only", nothing) })],
});
`;

interface Visit {
  readonly page: Page;
  /** What the page asked of others, and what the browser complained of. */
  readonly troubles: string[];
}

const watch = async (context: BrowserContext): Promise<Visit> => {
  const page = await context.newPage();
  const troubles: string[] = [];
  page.on("request", (request) => {
    const url = new URL(request.url());
    const isOurs = url.hostname === "127.0.0.1" || ["data:", "blob:"].includes(url.protocol);
    if (!isOurs) troubles.push(`request to ${url.host}`);
  });
  page.on("console", (message) => {
    if (message.type() === "error") troubles.push(`${message.location().url}: ${message.text()}`);
  });
  page.on("pageerror", (error) => troubles.push(`page: ${error.message}`));
  return { page, troubles };
};

const signedIn = async (
  browser: Browser,
  api: Api,
  token: string,
  to: "queues" | "docs",
): Promise<Visit> => {
  const { path } = await createClient({ server: api.server, token }).session.createCode();
  const visit = await watch(await browser.newContext());
  const answer = await visit.page.goto(`${api.server}${path}&to=${to}`);
  expect(answer?.status()).toBe(200);
  return visit;
};

/** As a script of the page itself would ask. */
const ask = async (page: Page, method: string, path: string): Promise<number> =>
  page.evaluate(
    async ({ method: verb, path: where }) => (await fetch(where, { method: verb })).status,
    { method, path },
  );

const KINDS: readonly DoorbellKind[] = (await hasRedis()) ? ["postgres", "redis"] : ["postgres"];

describe.skipIf(program === undefined && !isCi)("in a browser", () => {
  let browser: Browser;
  beforeAll(async () => {
    if (program === undefined) throw new Error(`expected one of ${PROGRAMS.join(", ")}`);
    browser = await chromium.launch({ executablePath: program, headless: true, args: FLAGS });
  }, 60_000);
  afterAll(async () => browser?.close(), 30_000);
  afterEach(async () => {
    for (const context of browser.contexts()) await context.close();
  });

  describe.each(KINDS)("over the doorbell on %s", (doorbell) => {
    let fleet: Fleet;
    let api: Api;
    let token: string;
    beforeAll(async () => {
      fleet = await openFleet({ doorbell });
      api = await fleet.startApi();
      await fleet.startScheduler();
      await fleet.startWorker(api, "worker");
      token = await projectToken(api, "pages");
      await using project = await newProject({ "coppice.config.ts": CONFIG });
      await deploy(project, api, token);
    }, 120_000);
    afterAll(async () => fleet?.[Symbol.asyncDispose](), 60_000);

    const runOne = async (): Promise<void> => {
      const client = createClient({ server: api.server, token });
      const { id } = await client.runs.submit({ body: { pipeline: "one" } });
      const state = async (): Promise<string> =>
        (await client.runs.get({ params: { run: id } })).state;
      await waitUntil(async () => (await state()) === "succeeded", { what: "the run to succeed" });
    };

    test("Bull Board shows a queue and what passes through it, without a reload", async () => {
      await runOne();
      const { page, troubles } = await signedIn(browser, api, token, "queues");
      expect(new URL(page.url()).pathname).toBe("/queues");
      const [queue] = (await api.admin.queues.list()).items;
      const name = queue?.class ?? "";
      await page.getByText(name, { exact: true }).first().click();
      await page
        .getByText(/^completed/i)
        .first()
        .click();
      const jobs = page.getByText(/^[0-9a-f-]{36}-0-0-a1-r1$/);
      await expect.poll(async () => jobs.count(), { timeout: 15_000 }).toBe(1);
      await runOne();
      await expect.poll(async () => jobs.count(), { timeout: 15_000 }).toBe(2);
      expect(troubles).toEqual([]);
    }, 60_000);

    test("who may only look can't change a queue, an admin can", async () => {
      const [queue] = (await api.admin.queues.list()).items;
      const reader = await signedIn(browser, api, token, "queues");
      const list = await reader.page.evaluate(async () =>
        (await fetch("/queues/api/queues")).json(),
      );
      const [shown] = (list as { queues: { name: string; displayName?: string }[] }).queues;
      expect(shown?.displayName ?? shown?.name).toBe(queue?.class);
      const pause = `/queues/api/queues/${encodeURIComponent(shown?.name ?? "")}/pause`;
      expect(await ask(reader.page, "PUT", pause)).toBe(403);
      const admin = await signedIn(browser, api, api.adminToken, "queues");
      expect(await ask(admin.page, "PUT", pause)).toBe(200);
      expect(await ask(admin.page, "PUT", pause.replace(/pause$/, "resume"))).toBe(200);
      expect(admin.troubles).toEqual([]);
    }, 60_000);

    test("a stranger sees neither page", async () => {
      const { page } = await watch(await browser.newContext());
      for (const path of ["/queues", "/docs/", "/openapi.json"]) {
        expect((await page.goto(api.server + path))?.status()).toBe(401);
      }
    });

    // It is the same on both doorbells: looked at once.
    test.for([doorbell].filter((kind) => kind === "postgres"))(
      "the documentation lists the routes, beside a doorbell on %s",
      { timeout: 60_000 },
      async () => {
        const { page, troubles } = await signedIn(browser, api, token, "docs");
        await page.getByRole("button", { name: "runs" }).first().click();
        await page.getByText("Start a run", { exact: false }).first().waitFor({ timeout: 30_000 });
        expect(await page.title()).toBe("Coppice API");
        expect(await page.getByText("/v1/runs").count()).toBeGreaterThan(0);
        expect(troubles).toEqual([]);
      },
    );
  });
});
