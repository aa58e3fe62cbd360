/**
 * A client that costs little: plain requests over connections that stay open. The product's own
 * client uses `fetch`, which on two shared cores would take as much time as the server that it
 * measures.
 */
import { Agent, type IncomingMessage, request } from "node:http";

export interface HttpLoad {
  /** @throws where another status than the wanted one comes */
  get(path: string, wanted: number): Promise<void>;
  post(path: string, body: unknown, wanted: number): Promise<void>;
  close(): void;
}

export const openHttpLoad = (server: string, token: string, connections: number): HttpLoad => {
  const agent = new Agent({ keepAlive: true, maxSockets: connections });
  const headers = { authorization: `Bearer ${token}`, "content-type": "application/json" };
  const send = (method: string, path: string, wanted: number, body?: string): Promise<void> =>
    new Promise((resolve, reject) => {
      const url = new URL(path, server);
      const outgoing = request(url, { method, headers, agent }, (reply: IncomingMessage) => {
        reply.resume();
        reply.once("error", reject);
        reply.once("end", () => {
          if (reply.statusCode === wanted) resolve();
          else reject(new Error(`${path}: expected ${wanted}. Received: ${reply.statusCode}`));
        });
      });
      outgoing.once("error", reject);
      outgoing.end(body);
    });
  return {
    get: (path, wanted) => send("GET", path, wanted),
    post: (path, body, wanted) => send("POST", path, wanted, JSON.stringify(body)),
    close: () => agent.destroy(),
  };
};

/** So many at a time, each again as soon as it is answered. @returns what each took, in ms */
export const repeatAtOnce = async (
  total: number,
  lanes: number,
  once: () => Promise<void>,
): Promise<number[]> => {
  const times: number[] = [];
  let left = total;
  const lane = async (): Promise<void> => {
    while (left > 0) {
      left -= 1;
      const startedAt = performance.now();
      await once();
      times.push(performance.now() - startedAt);
    }
  };
  await Promise.all(Array.from({ length: Math.min(lanes, total) }, lane));
  return times;
};
