/** doctor: looks at everything that a person would be asked about, and prints it to be pasted. */
import { connect as connectSocket } from "node:net";

import { findProject, indexProject } from "@coppice/bundle";
import { isCoppiceError } from "@coppice/core";
import type { Command } from "commander";

import { type CommonFlags, type Context, type Run, serverCommand } from "./command.ts";
import { connect, type Connection, resolveConnection } from "./connection.ts";
import { EXIT, type ExitCode } from "./exit-code.ts";

interface Finding {
  readonly check: string;
  readonly status: "ok" | "warning" | "failed" | "skipped";
  readonly detail: string;
  readonly hint?: string;
}

const failed = (check: string, error: unknown): Finding => ({
  check,
  status: "failed",
  detail: error instanceof Error ? error.message : String(error),
  ...(isCoppiceError(error) && error.hint !== undefined ? { hint: error.hint } : {}),
});

const checkNode = (): Finding => {
  const major = Number(process.versions.node.split(".")[0]);
  const detail = `${process.version} on ${process.platform}-${process.arch}`;
  return major >= 24
    ? { check: "node", status: "ok", detail }
    : { check: "node", status: "failed", detail, hint: "Coppice needs Node 24." };
};

const checkProject = async (cwd: string): Promise<Finding> => {
  const place = findProject(cwd);
  if (place === undefined) {
    return { check: "project", status: "skipped", detail: "no coppice.config here or above" };
  }
  try {
    const { name, pipelines } = await indexProject(place.dir);
    const names = pipelines.map((pipeline) => pipeline.name).join(", ");
    return { check: "project", status: "ok", detail: `${name}: ${names}` };
  } catch (error) {
    return failed("project", error);
  }
};

const SOCKET_TIMEOUT_MS = 3000;
/** Whether something listens there; what it says is the server's business. */
const accepts = (host: string, port: number): Promise<string | undefined> =>
  new Promise((resolve) => {
    const socket = connectSocket({ host, port, timeout: SOCKET_TIMEOUT_MS });
    const end = (problem: string | undefined): void => {
      socket.destroy();
      resolve(problem);
    };
    socket.once("connect", () => end(undefined));
    socket.once("timeout", () => end("no answer"));
    socket.once("error", (error) => end(error.message));
  });

const checkAddress = async (
  check: string,
  variable: string,
  url: string | undefined,
  defaultPort: number,
): Promise<Finding> => {
  if (url === undefined || url === "") {
    return { check, status: "skipped", detail: `${variable} is not set here` };
  }
  if (!URL.canParse(url)) return { check, status: "failed", detail: `${variable} is not a URL` };
  const { hostname, port } = new URL(url);
  const place = `${hostname}:${port === "" ? defaultPort : port}`;
  const problem = await accepts(hostname, port === "" ? defaultPort : Number(port));
  return problem === undefined
    ? { check, status: "ok", detail: `${place} accepts connections` }
    : { check, status: "failed", detail: `${place}: ${problem}`, hint: `Check ${variable}.` };
};

const checkServer = async (connection: Connection): Promise<readonly Finding[]> => {
  const client = connect(connection);
  const place = `${connection.server} (from ${connection.origin.server})`;
  try {
    await client.health.ready();
  } catch (error) {
    return [failed("server", error)];
  }
  const server: Finding = { check: "server", status: "ok", detail: place };
  try {
    const { items } = await client.workers.list();
    const alive = items.filter(({ isAlive }) => isAlive);
    const slots = alive.reduce((total, worker) => total + worker.slots, 0);
    const skewed = alive.filter(({ clockSkewMs }) => Math.abs(clockSkewMs) > 2000);
    return [
      server,
      { check: "token", status: "ok", detail: `accepted (from ${connection.origin.token})` },
      alive.length === 0
        ? {
            check: "workers",
            status: "warning",
            detail: "none is alive: runs will wait",
            hint: "Start one with `coppice worker`.",
          }
        : { check: "workers", status: "ok", detail: `${alive.length} alive, ${slots} slots` },
      ...skewed.map(
        ({ name, clockSkewMs }): Finding => ({
          check: "clock",
          status: "warning",
          detail: `the clock of ${name} is ${Math.round(clockSkewMs)} ms off`,
        }),
      ),
    ];
  } catch (error) {
    return [server, failed("token", error)];
  }
};

const SYMBOL = { ok: "✓", warning: "!", failed: "✗", skipped: "–" } as const;

const doctor = async ({ output, env, cwd, flags }: Context): Promise<ExitCode> => {
  const findings: Finding[] = [checkNode(), await checkProject(cwd)];
  try {
    findings.push(...(await checkServer(resolveConnection(flags, env, cwd))));
  } catch (error) {
    findings.push(failed("server", error));
  }
  findings.push(
    await checkAddress("database", "COPPICE_DATABASE_URL", env["COPPICE_DATABASE_URL"], 5432),
    await checkAddress("redis", "COPPICE_REDIS_URL", env["COPPICE_REDIS_URL"], 6379),
  );
  const isHealthy = !findings.some(({ status }) => status === "failed");
  const { colors } = output;
  const paint = {
    ok: colors.green,
    warning: colors.yellow,
    failed: colors.red,
    skipped: colors.dim,
  };
  output.result({ isHealthy, findings }, () =>
    findings.flatMap(({ check, status, detail, hint }) => [
      `${paint[status](SYMBOL[status])} ${check.padEnd(9)} ${detail}`,
      ...(hint === undefined ? [] : [`  ${colors.cyan("hint:")} ${hint}`]),
    ]),
  );
  return isHealthy ? EXIT.ok : EXIT.failed;
};

export const doctorCommand = (act: Run): Command =>
  serverCommand("doctor")
    .description("check Node, the project, the server, the token, the workers and the services")
    .action((flags: CommonFlags) => act(flags, doctor));
