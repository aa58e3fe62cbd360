/**
 * /livez and /metrics of a process that has no other HTTP. Only loopback and the hosts that are
 * allowed may ask, so that a web page that renamed itself to 127.0.0.1 learns nothing; the metrics
 * hold states, classes and counts, never an id or a user's text.
 */
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import type { MetricsRegistry } from "@coppice/telemetry";

export interface HealthServer {
  readonly port: number;
  close(): Promise<void>;
}

export interface HealthOptions {
  readonly host: string;
  readonly port: number;
  readonly allowedHosts: readonly string[];
  readonly metrics: MetricsRegistry;
}

const LOOPBACK = ["127.0.0.1", "localhost", "[::1]"];

const answer = async (
  { metrics }: HealthOptions,
  allowed: ReadonlySet<string>,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> => {
  const host = (request.headers.host ?? "").replace(/:\d{1,5}$/, "").toLowerCase();
  const send = (status: number, type: string, body: string): void => {
    response.writeHead(status, { "content-type": type, "x-content-type-options": "nosniff" });
    response.end(request.method === "HEAD" ? undefined : body);
  };
  if (!allowed.has(host)) send(421, "text/plain", "CPC_HOST_NOT_ALLOWED\n");
  else if (request.method !== "GET" && request.method !== "HEAD") {
    send(405, "text/plain", "CPC_NOT_FOUND\n");
  } else if (request.url === "/livez") send(200, "application/json", '{"status":"ok"}');
  else if (request.url === "/metrics") send(200, metrics.contentType, await metrics.text());
  else send(404, "text/plain", "CPC_NOT_FOUND\n");
};

export const startHealthServer = async (options: HealthOptions): Promise<HealthServer> => {
  const allowed = new Set([...LOOPBACK, ...options.allowedHosts.map((host) => host.toLowerCase())]);
  const server = createServer(
    { headersTimeout: 5000, requestTimeout: 5000 },
    (request, response) => {
      answer(options, allowed, request, response).catch(() => response.destroy());
    },
  );
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(options.port, options.host, resolve);
  });
  return {
    port: (server.address() as AddressInfo).port,
    close: async () => {
      server.closeAllConnections();
      await new Promise<void>((resolve) => server.close(() => resolve()));
    },
  };
};
