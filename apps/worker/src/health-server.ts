/**
 * /metrics, /livez and /readyz of a worker, on 127.0.0.1 alone.
 *
 * Ready: registered, not draining, and heard from the server within a minute. Only loopback names
 * are answered, so that a web page which renamed itself to 127.0.0.1 learns nothing.
 */
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

import { CoppiceError } from "@coppice/core";
import type { SupervisorStats } from "@coppice/supervisor";
import type { MetricsRegistry } from "@coppice/telemetry";

const LOOPBACK = new Set(["127.0.0.1", "localhost", "[::1]"]);
const SILENT_MS_MAX = 60_000;

export interface HealthServer {
  readonly port: number;
  close(): Promise<void>;
}

export interface HealthOptions {
  readonly port: number;
  readonly metrics: MetricsRegistry;
  /** undefined until the worker is registered. */
  readonly stats: () => SupervisorStats | undefined;
}

/** @throws CPC_PORT_IN_USE */
export const startHealthServer = async (options: HealthOptions): Promise<HealthServer> => {
  const server = createServer({ requestTimeout: 5000 }, (request, response) => {
    answer(options, request, response).catch(() => response.destroy());
  });
  await new Promise<void>((resolve, reject) => {
    server.once("error", (cause) => {
      const detail = `The port ${options.port} of 127.0.0.1: ${cause.message}`;
      reject(new CoppiceError("CPC_PORT_IN_USE", { detail, cause }));
    });
    server.listen(options.port, "127.0.0.1", resolve);
  });
  return {
    port: (server.address() as AddressInfo).port,
    close: async () => {
      server.closeAllConnections();
      await new Promise<void>((resolve) => server.close(() => resolve()));
    },
  };
};

const answer = async (
  { metrics, stats }: HealthOptions,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> => {
  const send = (status: number, type: string, body: string): void => {
    response.writeHead(status, { "content-type": type, "x-content-type-options": "nosniff" });
    response.end(body);
  };
  const host = (request.headers.host ?? "").replace(/:\d{1,5}$/, "").toLowerCase();
  if (!LOOPBACK.has(host)) return send(421, "text/plain", "CPC_HOST_NOT_ALLOWED\n");
  const current = stats();
  switch (request.url) {
    case "/livez":
      return send(200, "application/json", '{"status":"ok"}');
    case "/readyz": {
      const isReady =
        current !== undefined && !current.isDraining && current.silentMs < SILENT_MS_MAX;
      return send(isReady ? 200 : 503, "application/json", JSON.stringify({ isReady, ...current }));
    }
    case "/metrics":
      if (current !== undefined) {
        metrics.gauge("coppice_slots", current.freeSlots, { state: "free" });
        metrics.gauge("coppice_slots", current.slots - current.freeSlots, { state: "busy" });
      }
      return send(200, metrics.contentType, await metrics.text());
    default:
      return send(404, "text/plain", "CPC_NOT_FOUND\n");
  }
};
