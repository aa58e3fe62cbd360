/**
 * Databases for tests, as SQL: the template, its clones, their end. A clone takes about 25 ms, so
 * each test may have its own.
 */
import { randomBytes } from "node:crypto";
import { Client } from "pg";
import type { PostgresService } from "./test-server.ts";

export const withClient = async <T>(
  url: string,
  work: (client: Client) => Promise<T>,
): Promise<T> => {
  const client = new Client({ connectionString: url });
  // A connection lost between two queries shows in the next query; as an event it would end the
  // process.
  client.on("error", () => undefined);
  await client.connect();
  try {
    return await work(client);
  } finally {
    await client.end();
  }
};

export const withDatabase = (url: string, database: string): string => {
  const changed = new URL(url);
  changed.pathname = `/${database}`;
  return changed.toString();
};

const userOf = (url: string): string => decodeURIComponent(new URL(url).username) || "postgres";

const quote = (name: string): string => `"${name.replaceAll('"', '""')}"`;

/** A database that only its owner (and a superuser) can connect to. */
const create = async (
  client: Client,
  name: string,
  ownerUrl: string,
  template?: string,
): Promise<string> => {
  const from = template === undefined ? "" : ` TEMPLATE ${quote(template)}`;
  await client.query(`CREATE DATABASE ${quote(name)} OWNER ${quote(userOf(ownerUrl))}${from}`);
  await client.query(`REVOKE ALL ON DATABASE ${quote(name)} FROM PUBLIC`);
  return withDatabase(ownerUrl, name);
};

export const dropDatabase = async (service: PostgresService, name: string): Promise<void> =>
  withClient(service.adminUrl, async (client) => {
    await client.query(`DROP DATABASE IF EXISTS ${quote(name)} WITH (FORCE)`);
  });

/** The migrated database; closed to connections, because a clone needs it to have none. */
export const makeTemplate = async (
  service: PostgresService,
  migrate: (url: string) => Promise<void>,
): Promise<void> =>
  withClient(service.adminUrl, async (client) => {
    await migrate(await create(client, service.template, service.mainUrl));
    await client.query(`ALTER DATABASE ${quote(service.template)} ALLOW_CONNECTIONS false`);
  });

const randomName = (prefix: string): string => `${prefix}_${randomBytes(5).toString("hex")}`;

export interface CreatedDatabase {
  readonly name: string;
  readonly url: string;
}

export const cloneTemplate = async (service: PostgresService): Promise<CreatedDatabase> =>
  withClient(service.adminUrl, async (client) => {
    const name = randomName(service.prefix);
    return { name, url: await create(client, name, service.mainUrl, service.template) };
  });

/** The doorbell's role may only connect to databases that are named like its own. */
export const createDoorbell = async (service: PostgresService): Promise<CreatedDatabase> =>
  withClient(service.adminUrl, async (client) => {
    const name = randomName(`coppice_doorbell_${service.prefix}`);
    return { name, url: await create(client, name, service.doorbellUrl) };
  });

/** On a server that is not ours: takes away every database that this run made. */
export const closeDatabases = async (service: PostgresService): Promise<void> =>
  withClient(service.adminUrl, async (client) => {
    const { rows } = await client.query<{ datname: string }>(
      "SELECT datname FROM pg_database WHERE strpos(datname, $1) > 0",
      [service.prefix],
    );
    for (const { datname } of rows) {
      await client.query(`DROP DATABASE IF EXISTS ${quote(datname)} WITH (FORCE)`);
    }
  });
