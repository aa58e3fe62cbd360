/** What only PostgreSQL has: a schema to bring along, and a server that restarts under us. */
import { Client } from "pg";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  Collected,
  makeBells,
  newClass,
  type PostgresServer,
  startPostgresServer,
} from "../testing/services.ts";
import type { Bell } from "./bell.ts";
import { openDoorbell } from "./doorbell.ts";
import { listen } from "./listener.ts";
import { migrateDoorbell } from "./open-backend.ts";
import { createSlots } from "./slots.ts";

describe("the doorbell on PostgreSQL alone", () => {
  let server: PostgresServer;

  beforeAll(async () => {
    server = await startPostgresServer();
  }, 60_000);

  afterAll(async () => {
    await server.stop();
  }, 30_000);

  it("asks to be migrated first, and may be migrated twice", async () => {
    await expect(openDoorbell(server.address)).rejects.toMatchObject({
      code: "CPC_DATABASE_TOO_OLD",
    });
    await migrateDoorbell(server.address);
    await migrateDoorbell(server.address);
    const doorbell = await openDoorbell(server.address);
    await doorbell.ring(makeBells(newClass(), 1));
    await doorbell.close();
  });

  it("rings again within three seconds of a restart", async () => {
    await migrateDoorbell(server.address);
    const classKey = newClass();
    const heard = new Collected<Bell>();
    const doorbell = await openDoorbell(server.address);
    const listener = await listen(server.address, {
      slots: createSlots(4),
      classKeys: [classKey],
      onBell: async (bell, slot) => {
        heard.add(bell);
        slot.release();
        return Promise.resolve("started");
      },
    });
    await doorbell.ring(makeBells(classKey, 5));
    await heard.untilCount(5);
    await server.restart();
    const backMs = performance.now();
    const late = makeBells(classKey, 5, { step: 9 });
    const ring = async (): Promise<string> =>
      doorbell.ring(late).then(
        () => "rung",
        (error: unknown) => String(error),
      );
    await expect.poll(ring, { timeout: 10_000, interval: 50 }).toBe("rung");
    await heard.until((items) => items.filter((bell) => bell.step === 9).length >= 5);
    expect(performance.now() - backMs).toBeLessThan(3000);
    await listener.close(3000);
    await doorbell.close();
  }, 60_000);

  it("uses few connections, and none once it is closed", async () => {
    await migrateDoorbell(server.address);
    const classKeys = [newClass(), newClass(), newClass()];
    const heard = new Collected<Bell>();
    const doorbell = await openDoorbell(server.address);
    const listener = await listen(server.address, {
      slots: createSlots(32),
      classKeys,
      onBell: async (bell, slot) => {
        heard.add(bell);
        slot.release();
        return Promise.resolve("started");
      },
    });
    await doorbell.ring(classKeys.flatMap((classKey) => makeBells(classKey, 100)));
    await heard.untilCount(300);
    const client = new Client(server.address.url);
    await client.connect();
    const countOthers = async (): Promise<number> => {
      const { rows } = await client.query<{ others: number }>(
        "SELECT count(*)::int AS others FROM pg_stat_activity " +
          "WHERE usename = current_user AND pid <> pg_backend_pid()",
      );
      return rows[0]?.others ?? -1;
    };
    // The worker: four for queries, one per class. The producer: two, and one at its start.
    expect(await countOthers()).toBeLessThanOrEqual(10);
    await listener.close(3000);
    await doorbell.close();
    await expect.poll(countOthers).toBe(0);
    await client.end();
  });
});
