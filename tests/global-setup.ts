/**
 * The services behind every test run: `@coppice/testing` starts them when the first test asks.
 * COPPICE_TEST_DATABASE_URL and COPPICE_TEST_REDIS_URL name servers to use instead.
 */
import { silentLogger } from "@coppice/core";
import { redisCacheDir, startTestServer } from "@coppice/testing";

const migrate = async (url: string): Promise<void> => {
  // Loaded when needed: a run that asks for no database does not read the store.
  const store = await import("@coppice/store");
  await store.migrate(url, silentLogger);
};

export const setup = async (): Promise<() => Promise<void>> => {
  const server = await startTestServer({
    migrate,
    redisCacheDir: redisCacheDir(),
    databaseUrl: process.env["COPPICE_TEST_DATABASE_URL"],
    redisUrl: process.env["COPPICE_TEST_REDIS_URL"],
    isCi: (process.env["CI"] ?? "") !== "",
    say: (line) => process.stderr.write(`${line}\n`),
  });
  process.env["COPPICE_TEST_SERVICES"] = server.url;
  process.env["COPPICE_TEST_DIR"] = server.dir;
  return async () => server.stop();
};
