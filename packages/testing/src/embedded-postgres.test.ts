/** What `local` promises about its server, seen through SQL. */
import { silentLogger } from "@coppice/core";
import { startEmbeddedPostgres } from "@coppice/local";
import { chmod } from "node:fs/promises";
import { join } from "node:path";
import { expect, it } from "vitest";
import { ownPostgres, tempDir } from "./index.ts";
import { withClient, withDatabase } from "./test-database.ts";

it("has its two databases, each reached by its own role without rights elsewhere", async () => {
  await using own = await ownPostgres();
  const { server } = own;
  for (const database of ["coppice", "coppice_doorbell"]) {
    const { rows } = await withClient(server.url(database), async (client) =>
      client.query("SELECT current_user AS role, current_setting('is_superuser') AS super"),
    );
    expect(rows).toEqual([{ role: database, super: "off" }]);
  }
  for (const database of ["coppice", "postgres", "template1"]) {
    const url = withDatabase(server.url("coppice_doorbell"), database);
    await expect(withClient(url, async () => undefined)).rejects.toThrow(/rejects connection/);
  }
  const foreign = withDatabase(server.url("coppice"), "coppice_doorbell");
  await expect(withClient(foreign, async () => undefined)).rejects.toThrow(/permission denied/);
});

it("is durable and loopback-only unless a caller says otherwise", async () => {
  await using own = await ownPostgres();
  const { rows } = await withClient(own.server.adminUrl("postgres"), async (client) =>
    client.query<{ name: string; setting: string }>(
      `SELECT name, setting FROM pg_settings WHERE name IN
         ('fsync', 'synchronous_commit', 'full_page_writes', 'listen_addresses', 'max_connections')`,
    ),
  );
  expect(Object.fromEntries(rows.map((row) => [row.name, row.setting]))).toEqual({
    fsync: "on",
    synchronous_commit: "on",
    full_page_writes: "on",
    listen_addresses: "127.0.0.1",
    max_connections: "100",
  });
});

it("has every committed row after the server was killed", async () => {
  await using dir = await tempDir("postgres");
  await chmod(dir.path, 0o711);
  const options = {
    dataDir: join(dir.path, "postgres"),
    logFile: join(dir.path, "postgres.log"),
    logger: silentLogger,
  };
  const first = await startEmbeddedPostgres(options);
  await withClient(first.url("coppice"), async (client) => {
    await client.query("CREATE TABLE leaf (n int)");
    await client.query("INSERT INTO leaf SELECT generate_series(1, 1000)");
  });
  process.kill(first.pid, "SIGKILL");
  await first.stop();
  const second = await startEmbeddedPostgres(options);
  const { rows } = await withClient(second.url("coppice"), async (client) =>
    client.query("SELECT count(*)::int AS kept FROM leaf"),
  );
  await second.stop();
  expect(rows).toEqual([{ kept: 1000 }]);
});
