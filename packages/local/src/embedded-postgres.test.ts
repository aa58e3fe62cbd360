/** The server's life: made, found again, never shared, never left behind. Its SQL is tested in `testing`. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { chmod, mkdtemp, readFile, readlink, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { type Logger, silentLogger } from "@coppice/core";
import { afterEach, beforeEach, expect, it } from "vitest";
import { startEmbeddedPostgres } from "./embedded-postgres.ts";
import { isProcessAlive, waitForProcessEnd } from "./wait-for.ts";

let root = "";

beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), "coppice-local-"));
  await chmod(root, 0o711);
});

afterEach(async () => {
  await rm(root, { recursive: true, force: true });
});

const options = (logger: Logger = silentLogger) => ({
  dataDir: join(root, "postgres"),
  logFile: join(root, "logs", "postgres.log"),
  logger,
  settings: { fsync: "off" },
});

/** A process of its own that starts the server, says its pid and waits to be killed. */
const startElsewhere = async (): Promise<{ ownerPid: number; serverPid: number }> => {
  const code = `
    import { startEmbeddedPostgres } from ${JSON.stringify(import.meta.resolve("./index.ts"))};
    const quiet = () => undefined;
    const logger = { debug: quiet, info: quiet, warn: quiet, error: quiet, child: () => logger };
    const { dataDir, logFile } = ${JSON.stringify(options())};
    const server = await startEmbeddedPostgres({ dataDir, logFile, logger });
    process.stdout.write(server.pid + "\\n");
    setInterval(() => undefined, 60_000);
  `;
  const args = ["--conditions=@coppice/source", "--input-type=module", "-e", code];
  const child = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "inherit"] });
  const line: unknown = (await once(createInterface({ input: child.stdout }), "line")).at(0);
  return { ownerPid: child.pid!, serverPid: Number(line) };
};

it("keeps its passwords from everyone else, and its port across starts", async () => {
  const first = await startEmbeddedPostgres(options());
  await first.stop();
  expect(isProcessAlive(first.pid)).toBe(false);
  const { mode } = await stat(join(root, "postgres", "credentials.json"));
  expect(mode & 0o777).toBe(0o600);
  const second = await startEmbeddedPostgres(options());
  await second.stop();
  expect(second.port).toBe(first.port);
  expect(second.password).toBe(first.password);
});

it("never shows a password in the server's arguments", async () => {
  const server = await startEmbeddedPostgres(options());
  const words = await readFile(`/proc/${server.pid}/cmdline`, "utf8").catch(() => "");
  await server.stop();
  expect(words).not.toContain(server.password);
});

it("refuses a second owner while the first one lives", async () => {
  const server = await startEmbeddedPostgres(options());
  const second = startEmbeddedPostgres(options());
  await expect(second).rejects.toMatchObject({ code: "CPC_EMBEDDED_START_FAILED" });
  await expect(second).rejects.toThrow(`Process ${process.pid} uses the database`);
  expect(isProcessAlive(server.pid)).toBe(true);
  await server.stop();
});

it("ends with its owner, even when that one is killed, and starts again afterwards", async () => {
  const { ownerPid, serverPid } = await startElsewhere();
  process.kill(ownerPid, "SIGKILL");
  expect(await waitForProcessEnd(serverPid, 15_000)).toBe(true);
  const server = await startEmbeddedPostgres(options());
  await server.stop();
});

it("stops the server that a dead owner left running before it starts another", async () => {
  const stale = await startEmbeddedPostgres(options());
  // As if its owner had died together with its guard.
  await rm(join(root, "postgres", "owner.json"));
  const next = await startEmbeddedPostgres(options());
  await stale.exited;
  expect(isProcessAlive(next.pid)).toBe(true);
  expect(next.port).toBe(stale.port);
  await next.stop();
});

it("starts over a postmaster.pid whose process is somebody else by now", async () => {
  const first = await startEmbeddedPostgres(options());
  process.kill(first.pid, "SIGKILL");
  await first.exited;
  await rm(join(root, "postgres", "owner.json"));
  const next = await startEmbeddedPostgres(options());
  await next.stop();
  expect(next.pid).not.toBe(first.pid);
});

it("says which port is taken when it is asked for that one", async () => {
  const first = await startEmbeddedPostgres(options());
  const second = startEmbeddedPostgres({
    ...options(),
    dataDir: join(root, "other"),
    port: first.port,
  });
  await expect(second).rejects.toMatchObject({ code: "CPC_PORT_IN_USE" });
  await first.stop();
});

it.runIf(process.getuid?.() === 0)(
  "as root: lays the data where the server's user may go, and says so in one line",
  async () => {
    await chmod(root, 0o700);
    const lines: string[] = [];
    const logger: Logger = {
      ...silentLogger,
      info: (fields, message) => lines.push(`${message} ${JSON.stringify(fields)}`),
    };
    const server = await startEmbeddedPostgres(options(logger));
    await server.stop();
    const cluster = await readlink(join(root, "postgres", "cluster"));
    const { uid, mode } = await stat(cluster);
    // The folder is deleted as people delete `.coppice` to begin anew.
    await rm(join(root, "postgres"), { recursive: true });
    const again = await startEmbeddedPostgres(options());
    await again.destroy();
    await expect(stat(cluster)).rejects.toThrow("ENOENT");
    expect(lines).toHaveLength(1);
    expect(lines[0]).toContain(cluster);
    expect(uid).not.toBe(0);
    expect(mode & 0o777).toBe(0o700);
    expect(again.password).not.toBe(server.password);
  },
);
