import Fastify, { type FastifyInstance } from "fastify";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  type DoorbellServer,
  isRedisAvailable,
  makeBells,
  newClass,
  startPostgresServer,
  startRedisServer,
} from "../testing/services.ts";
import { queueName } from "./address.ts";
import { type Board, openBoard } from "./board.ts";
import { type Doorbell, openDoorbell } from "./doorbell.ts";
import { migrateDoorbell } from "./open-backend.ts";

interface BoardQueue {
  readonly name: string;
  readonly displayName: string;
  readonly counts: Readonly<Record<string, number>>;
}

describe.each([
  ...((await isRedisAvailable()) ? [{ name: "Redis", start: startRedisServer }] : []),
  { name: "PostgreSQL", start: startPostgresServer },
])("Bull Board on $name", ({ start }) => {
  let server: DoorbellServer;
  let doorbell: Doorbell;
  let board: Board;
  let app: FastifyInstance;
  const [first, second] = [newClass(), newClass()];

  beforeAll(async () => {
    server = await start();
    await migrateDoorbell(server.address);
    doorbell = await openDoorbell(server.address);
    await doorbell.ring(makeBells(first, 3));
    board = openBoard({
      address: server.address,
      basePath: "/queues",
      readOnly: (request) => request.headers["x-role"] !== "admin",
    });
    app = Fastify();
    await app.register(board.plugin);
    await app.ready();
  }, 60_000);

  afterAll(async () => {
    await app.close();
    await board.close();
    await doorbell.close();
    await server.stop();
  }, 30_000);

  const shownQueues = async (): Promise<readonly BoardQueue[]> => {
    const response = await app.inject({ url: "/queues/api/queues" });
    expect(response.statusCode).toBe(200);
    return response.json<{ queues: readonly BoardQueue[] }>().queues;
  };

  it("serves its page under the base path, titled Coppice", async () => {
    const response = await app.inject({ url: "/queues" });
    expect([response.statusCode, response.headers["content-type"]]).toEqual([
      200,
      expect.stringContaining("text/html"),
    ]);
    expect(response.body).toContain("Coppice");
  });

  it("shows the queues of exactly the classes that it is told", async () => {
    board.setClasses([first]);
    const [queue, ...others] = await shownQueues();
    expect(others).toEqual([]);
    expect([queue?.displayName, queue?.counts["prioritized"]]).toEqual([first, 3]);
    board.setClasses([first, second]);
    expect((await shownQueues()).map((shown) => shown.displayName).toSorted()).toEqual(
      [first, second].toSorted(),
    );
    board.setClasses([second]);
    expect((await shownQueues()).map((shown) => shown.displayName)).toEqual([second]);
  });

  it("changes nothing for those who may only look", async () => {
    board.setClasses([first]);
    const url = `/queues/api/queues/${encodeURIComponent(queueName(first))}/empty`;
    const refused = await app.inject({ method: "PUT", url });
    expect([refused.statusCode, refused.json<{ code: string }>().code]).toEqual([
      403,
      "CPC_FORBIDDEN",
    ]);
    expect((await doorbell.depth()).get(first)?.waiting).toBe(3);
    const allowed = await app.inject({ method: "PUT", url, headers: { "x-role": "admin" } });
    expect(allowed.statusCode).toBe(200);
    expect((await doorbell.depth()).get(first)?.waiting).toBe(0);
  });
});
