import { startTestServer, redisCacheDir, testPostgres, testDoorbellDatabase, startInlineWorker, succeeded, tempDir, waitUntil } from "@coppice/testing";
import { migrate } from "@coppice/store";
import { silentLogger } from "@coppice/core";
import { createClient } from "@coppice/contract";
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
const server = await startTestServer({ migrate: async (u) => { await migrate(u, silentLogger); }, redisCacheDir: redisCacheDir(), databaseUrl: undefined, redisUrl: undefined, isCi: false, say: () => {} });
process.env.COPPICE_TEST_SERVICES = server.url; process.env.COPPICE_TEST_DIR = server.dir;
const db = await testPostgres(); const bell = await testDoorbellDatabase(); const dir = await tempDir("bench");
const tokenFile = dir.path + "/t";
const env = { PATH: process.env.PATH!, COPPICE_DATABASE_URL: db.url, COPPICE_DOORBELL_DATABASE_URL: bell.url, COPPICE_ARTIFACTS: dir.path + "/a", COPPICE_BOOTSTRAP_TOKEN_FILE: tokenFile, COPPICE_PORT: "0", COPPICE_LOG_LEVEL: "info" };
const run = (args: string[]) => new Promise<void>((r) => spawn("/work/main/apps/api/bin/coppice-api.js", args, { env, stdio: "inherit" }).once("close", () => r()));
await run(["migrate"]);
const api = spawn(process.execPath, [...(process.env.PROF ? ["--cpu-prof","--cpu-prof-dir=/tmp/prof"]:[]), "/work/main/apps/api/bin/coppice-api.js"], { env, stdio: ["ignore", "pipe", "inherit"] });
let out = ""; api.stdout.on("data", (d) => { out += d; });
const port = await waitUntil(() => /127\.0\.0\.1:(\d+)/.exec(out)?.[1], { what: "listen", timeoutMs: 20000 });
const { readFileSync } = await import("node:fs");
const token = readFileSync(tokenFile, "utf8").trim();
const client = createClient({ server: `http://127.0.0.1:${port}`, token });
const digest = createHash("sha256").update("b").digest("hex");
await client.bundles.put({ params: { digest }, body: new Blob(["b"]) });
await client.pipelines.deploy({ body: { bundleDigest: digest, pipelines: [
  { irVersion: 1, name: "one", params: {}, steps: [{ key: "a", resources: { labels: { none: "x" } } }] },
  { irVersion: 1, name: "chain", params: {}, steps: Array.from({ length: 10 }, (_, i) => ({ key: `s${i}`, ...(i ? { after: [`s${i - 1}`] } : {}) })) },
] as never } });
// submit latency, 50 clients
const times: number[] = []; const t0 = performance.now();
await Promise.all(Array.from({ length: 50 }, async () => { for (let i = 0; i < 40; i++) { const a = performance.now(); await client.runs.submit({ body: { pipeline: "one" } }); times.push(performance.now() - a); } }));
const el = performance.now() - t0; times.sort((a, b) => a - b);
console.log(`submit 50 clients: p50 ${times[1000]!.toFixed(1)} ms p99 ${times[1980]!.toFixed(1)} ms, ${(2000 / el * 1000).toFixed(0)}/s`);
// open loop at 50 clients each pausing 50 ms
times.length = 0;
await Promise.all(Array.from({ length: 50 }, async () => { for (let i = 0; i < 20; i++) { await new Promise((r) => setTimeout(r, Math.random() * 200)); const a = performance.now(); await client.runs.submit({ body: { pipeline: "one" } }); times.push(performance.now() - a); } }));
times.sort((a, b) => a - b); console.log(`submit 50 paced clients: p50 ${times[500]!.toFixed(1)} ms p99 ${times[990]!.toFixed(1)} ms`);
const http = { registerWorker: async (_t: never, body: never) => { const r = await client.workers.register({ body }); return r as never; },
  work: async (worker: string, items: never[]) => (await (await fetch(`http://127.0.0.1:${port}/v1/workers/${worker}/exchange`, { method: "POST", headers: { authorization: `Bearer ${token}`, "content-type": "application/json" }, body: JSON.stringify({ lane: "work", items }) })).json() as never as {answers: never}).answers,
  stream: async (worker: string, items: never[]) => (await client.workers.exchange({ params: { worker }, body: { lane: "stream", items } })).answers as never };
// coalesce like a real worker: one request in flight per lane
const lane = (send: (w: string, items: never[]) => Promise<never[]>) => { let queue: { item: never; resolve: (v: never) => void; reject: (e: unknown) => void }[] = []; let busy = false;
  const pump = async (w: string) => { if (busy) return; busy = true; while (queue.length) { const batch = queue; queue = []; try { const a = await send(w, batch.map((b) => b.item)); batch.forEach((b, i) => b.resolve(a[i]!)); } catch (e) { batch.forEach((b) => b.reject(e)); } } busy = false; };
  return async (w: string, items: never[]) => { const all = items.map((item) => new Promise<never>((resolve, reject) => queue.push({ item, resolve, reject }))); void pump(w); return await Promise.all(all); }; };
const N = Number(process.env.RUNS ?? 300);
const workers = [];
for (let i = 0; i < 2; i++) workers.push(await startInlineWorker({ engine: { ...http, work: lane(http.work as never) } as never, doorbell: { kind: "postgres", url: bell.url }, tokenId: "" as never, slots: 32, heartbeatMs: 4000, execute: () => succeeded({ ok: true }) }));
const a = performance.now();
await Promise.all(Array.from({ length: 25 }, async () => { for (let i = 0; i < N / 25; i++) await client.runs.submit({ body: { pipeline: "chain" } }); }));
const submitted = performance.now() - a;
const { openDatabase } = await import("@coppice/store");
const d = openDatabase({ url: db.url, applicationName: "bench", logger: silentLogger });
await waitUntil(async () => { const [r] = await d.query("select count(*)::int n from run r join pipeline_version v on v.id=r.pipeline_version_id where v.name='chain' and state='succeeded'"); return r!["n"] === N; }, { what: "runs", timeoutMs: 180000, everyMs: 50 });
const total = performance.now() - a;
console.log(`${N * 10} steps over HTTP, 2 workers x 32 slots: ${(N * 10 / total * 1000).toFixed(0)} steps/s (submitted in ${submitted.toFixed(0)} ms, total ${total.toFixed(0)})`);
for (const w of workers) await w.stop();
api.kill("SIGTERM"); await new Promise((r) => api.once("close", r));
await d.close(); await db.drop(); await bell.drop(); await server.stop(); process.exit(0);
