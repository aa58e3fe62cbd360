/** The fixtures themselves: each test has its own database and keys, and leaves nothing. */
import { connect } from "node:net";
import { describe, expect, it } from "vitest";
import { hasRedis, ownRedis, testDoorbellDatabase, testPostgres, testRedis } from "./index.ts";
import { withClient, withDatabase } from "./test-database.ts";

const names = async (url: string): Promise<string[]> =>
  withClient(url, async (client) => {
    const { rows } = await client.query<{ datname: string }>("SELECT datname FROM pg_database");
    return rows.map((row) => row.datname);
  });

describe("testPostgres", () => {
  it("gives two tests two databases that do not see each other's tables", async () => {
    await using one = await testPostgres();
    await using two = await testPostgres();
    await withClient(one.url, async (client) => client.query("CREATE TABLE only_here (n int)"));
    const found = await withClient(two.url, async (client) =>
      client.query<{ found: string | null }>("SELECT to_regclass('only_here')::text AS found"),
    );
    expect(one.name).not.toBe(two.name);
    expect(found.rows[0]?.found).toBeNull();
  });

  it("drops a database when it is disposed, even while a client is connected", async () => {
    await using witness = await testPostgres();
    const dropped = await testPostgres();
    expect(await names(witness.url)).toContain(dropped.name);
    const cut = withClient(dropped.url, async (client) => {
      await dropped.drop();
      await client.query("SELECT 1");
    });
    await expect(cut).rejects.toThrow(/terminat|not queryable/);
    expect(await names(witness.url)).not.toContain(dropped.name);
  });
});

// A server given from outside has the one role that was given.
const isOurServer = process.env["COPPICE_TEST_DATABASE_URL"] === undefined;

describe.runIf(isOurServer)("testDoorbellDatabase", () => {
  it("is reached by the doorbell's role, which can't connect to a test's main database", async () => {
    await using main = await testPostgres();
    await using doorbell = await testDoorbellDatabase();
    const { rows } = await withClient(doorbell.url, async (client) =>
      client.query<{ role: string }>("SELECT current_user AS role"),
    );
    expect(rows).toEqual([{ role: "coppice_doorbell" }]);
    const elsewhere = withClient(withDatabase(doorbell.url, main.name), async () => undefined);
    await expect(elsewhere).rejects.toThrow(/reject|permission denied/);
  });
});

describe.skipIf(!(await hasRedis()))("testRedis", () => {
  it("gives every test a prefix of its own on one server", async () => {
    const [one, two] = await Promise.all([testRedis(), testRedis()]);
    expect(one.url).toBe(two.url);
    expect(one.prefix).not.toBe(two.prefix);
  });

  it("gives a server of its own to a test that wants to kill one", async () => {
    const shared = await testRedis();
    let port = 0;
    {
      await using own = await ownRedis();
      port = own.server.port;
      expect(own.server.url).not.toBe(shared.url);
    }
    const refused = new Promise((resolve) => {
      connect({ host: "127.0.0.1", port }).once("error", (error) => resolve(error.message));
    });
    expect(await refused).toContain("ECONNREFUSED");
  });
});
