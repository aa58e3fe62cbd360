/**
 * A worker process without children: the supervisor's own lanes to the API, the real doorbell, and
 * steps that end as soon as they begin. It measures what the fleet costs without user code.
 */
import type { RegisterReply, RegisterRequest } from "@coppice/contract";
import type { TokenId, WorkerId } from "@coppice/core";
import { ApiClient } from "@coppice/supervisor";
import { startInlineWorker, succeeded } from "@coppice/testing";
import { benchLogger } from "./servers.ts";

const variable = (name: string): string => {
  const value = process.env[name];
  if (value === undefined) throw new Error(`expected ${name}`);
  return value;
};

const slots = Number(variable("COPPICE_WORKER_SLOTS"));
const registration: RegisterRequest = {
  protocol: 1,
  name: `noop-${process.pid}`,
  host: "localhost",
  version: "0.0.0",
  labels: {},
  slots,
  devices: [],
  clockMs: Date.now(),
};
let reply: RegisterReply | undefined;
const api = new ApiClient({
  server: variable("COPPICE_SERVER_URL"),
  token: variable("COPPICE_TOKEN"),
  registration: () => registration,
  onRegistered: (registered) => {
    reply = registered;
  },
  logger: benchLogger,
});
await api.register();
if (reply === undefined) throw new Error("expected a registration");
const { doorbell, classes, clockSkewMs } = reply;
const worker = await startInlineWorker({
  engine: {
    registerWorker: async () => ({ workerId: api.workerId as WorkerId, classes, clockSkewMs }),
    work: (_workerId, items) => Promise.all(items.map((item) => api.work.push(item))),
    stream: (_workerId, items) => Promise.all(items.map((item) => api.stream.push(item))),
  },
  doorbell,
  tokenId: "" as TokenId,
  slots,
  execute: () => succeeded(null),
});
process.once("SIGTERM", () => {
  void worker.stop().finally(() => {
    api.close();
    process.exit(0);
  });
});
