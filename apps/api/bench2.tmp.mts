import { buildApp } from "./dist/app.js"; import { mintToken } from "./dist/token.js";
import { createMetrics } from "@coppice/telemetry"; import { silentLogger } from "@coppice/core"; import { randomUUID } from "node:crypto";
const t = mintToken(); const worker = randomUUID();
const db = { query: async (s: any) => s.name === "find-token" ? [{ id: t.id, projectId: null, projectName: null, name: "w", scope: "worker", createdAt: new Date(), expiresAt: null, revokedAt: null }] : s.name === "worker-of-token" ? [{ tokenId: t.id }] : [], transaction: async () => {}, listen: async () => {}, close: async () => {} };
const engine = { onRunChanged: () => () => {}, work: async (_w: any, items: any[]) => items.map((i) => ({ type: "accepted" })) };
const app = await buildApp({ db, engine, artifacts: {}, doorbellAddress: {}, logger: silentLogger, metrics: createMetrics(), leaseMs: 15000, heartbeatMs: 4000, allowedHosts: [] } as never);
const url = await app.listen({ host: "127.0.0.1", port: 0 });
for (const size of [8]) {
  const items = Array.from({ length: size }, () => ({ type: "finish", runId: randomUUID(), step: 1, item: 0, attempt: 1, lease: randomUUID(), outcome: { type: "succeeded", output: { ok: true, rows: [1, 2, 3], name: "x" }, artifacts: [] }, usage: { wallMs: 1, cpuMs: 1, memoryPeakMb: 1 }, offer: { lease: randomUUID(), gpus: 0 } }));
  const body = JSON.stringify({ lane: "work", items });
  let n = 0; const end = performance.now() + 8000; const c0 = process.cpuUsage();
  await Promise.all([0, 1].map(async () => { while (performance.now() < end) { const r = await fetch(`${url}/v1/workers/${worker}/exchange`, { method: "POST", headers: { authorization: `Bearer ${t.text}`, "content-type": "application/json" }, body }); await r.arrayBuffer(); if (!r.ok) throw new Error(String(r.status)); n++; } }));
  const c = process.cpuUsage(c0); console.log(size, "items:", Math.round(n / 8), "req/s", Math.round(n * size / 8), "items/s; cpu incl. client", ((c.user + c.system) / n / 1000).toFixed(2), "ms/req");
}
await app.close(); process.exit(0);
