/** dev: a whole installation for this project, its code deployed again at every change. */
import { relative } from "node:path";

import { bundleProject, type ProjectBundle, watchProject } from "@coppice/bundle";
import type { Client } from "@coppice/contract";
import { CoppiceError, formatDuration, isCoppiceError, type RunState } from "@coppice/core";
import { freePort } from "@coppice/local";
import type { Command } from "commander";

import { type CommonFlags, type Context, plainCommand, type Run, wholeNumber } from "./command.ts";
import { deployBundle } from "./deploy.ts";
import { EXIT, type ExitCode } from "./exit-code.ts";
import { requireProjectAbove } from "./fleet-commands.ts";
import { type LocalStack, startLocalStack } from "./local-stack.ts";
import { formatAge, paintState } from "./run-format.ts";
import { VERSION } from "./version.ts";

interface DevFlags extends CommonFlags {
  readonly port?: number;
  readonly slots?: number;
}

const DEFAULT_PORT = 4600;
const RUNS_POLL_MS = 1000;

const clock = (): string => new Date(Date.now()).toTimeString().slice(0, 8);
const kib = (bytes: number): string => `${Math.ceil(bytes / 1024)} KiB`;

/** 4600 where it is free: an address that one remembers. */
const choosePort = async (wanted: number | undefined): Promise<number> => {
  if (wanted !== undefined) return wanted;
  const isTaken = await fetch(`http://127.0.0.1:${DEFAULT_PORT}/livez`, {
    signal: AbortSignal.timeout(500),
  }).then(
    () => true,
    (error: unknown) => !(error instanceof TypeError),
  );
  return isTaken ? freePort() : DEFAULT_PORT;
};

const signInUrl = async (client: Client, server: string): Promise<string> => {
  const { path } = await client.session.createCode();
  return server + path;
};

interface Banner {
  readonly stack: LocalStack;
  readonly bundle: ProjectBundle;
  readonly tookMs: number;
  readonly url: string;
}

const printBanner = ({ output, cwd }: Context, { stack, bundle, tookMs, url }: Banner): void => {
  const { colors } = output;
  const { worker, server } = stack;
  const label = (text: string): string => `  ${colors.dim(text.padEnd(9))} `;
  const count = bundle.manifest.pipelines.length;
  const gpus = worker.gpus === 0 ? "no GPU" : `${worker.gpus} GPUs`;
  output.line(`\n  ${colors.bold(`coppice ${VERSION}`)}  ready in ${formatDuration(tookMs)}\n`);
  output.line(`${label("Server")}${server}   API docs ${server}/docs`);
  output.line(`${label("Sign in")}${url}   ${colors.dim("(once, within five minutes)")}`);
  output.line(`${label("Store")}.coppice/ (embedded PostgreSQL; doorbell: ${stack.doorbell})`);
  output.line(`${label("Worker")}${worker.name} · ${worker.slots} slots · ${gpus}`);
  output.line(
    `${label("Code")}${bundle.manifest.project} · ${count} pipeline${count === 1 ? "" : "s"} · ` +
      `bundle ${bundle.digest.slice(0, 8)}… (${kib(bundle.bytes.byteLength)})`,
  );
  output.line(`${label("Logs")}${relative(cwd, stack.logDir) || "."}`);
  const first = bundle.manifest.pipelines[0]?.name ?? "<pipeline>";
  output.line(`\n  ${colors.dim("start a run:")} coppice run ${first} --watch`);
  output.line(`  ${colors.dim(output.isLive ? "watching — q quits" : "watching")}\n`);
};

/** Tells of runs as they start and end, whoever started them. */
const reportRuns = async (
  { output, signal }: Context,
  client: Client,
  stopped: AbortSignal,
): Promise<void> => {
  const known = new Map<string, RunState>();
  let isFirst = true;
  while (!signal.aborted && !stopped.aborted) {
    // The server may be busy for a moment: the next look tells.
    const page = await client.runs.list({ query: { limit: 50 } }).catch(() => undefined);
    for (const run of page?.items.toReversed() ?? []) {
      if (known.get(run.id) === run.state) continue;
      known.set(run.id, run.state);
      if (isFirst) continue;
      const took =
        run.finishedAt === null ? "" : formatAge(run.createdAt, Date.parse(run.finishedAt));
      const state = paintState(run.state, output.colors);
      output.line(`  ${clock()}  ${run.id}  ${run.pipeline}  ${state}  ${took}`.trimEnd());
    }
    isFirst &&= page === undefined;
    await new Promise((resolve) => setTimeout(resolve, RUNS_POLL_MS).unref());
  }
};

/** One deployment at a time; changes that come meanwhile make one more. */
const createRedeploy = ({ output }: Context, client: Client, projectDir: string, first: string) => {
  let digest = first;
  let lastProblem = "";
  let isBusy = false;
  let isDirty = false;
  const deployOnce = async (): Promise<void> => {
    const startedAtMs = Date.now();
    try {
      const bundle = await bundleProject(projectDir);
      if (bundle.digest === digest) return;
      const { versions } = await deployBundle(client, bundle);
      digest = bundle.digest;
      const names = versions.map(({ name, version }) => `${name} version ${version}`).join(", ");
      const took = formatDuration(Date.now() - startedAtMs);
      output.line(`  ${clock()}  deployed ${digest.slice(0, 8)}…  ${names}  ${took}`);
      lastProblem = "";
    } catch (error) {
      const text = String(error);
      // A person who is typing saves the same mistake more than once.
      if (text === lastProblem) return;
      lastProblem = text;
      if (isCoppiceError(error)) output.problem(error);
      else output.crash(error);
    }
  };
  return async (): Promise<void> => {
    isDirty = true;
    if (isBusy) return;
    isBusy = true;
    while (isDirty) {
      isDirty = false;
      await deployOnce();
    }
    isBusy = false;
  };
};

const endWith = async (failed: Promise<unknown>, done: () => void): Promise<void> => {
  await failed;
  done();
};

/** Resolves when the person wants to stop: q or Ctrl-C on a terminal, a signal anywhere. */
const awaitQuit = ({ stdin, signal }: Context, failed: Promise<unknown>): Promise<void> =>
  new Promise((resolve) => {
    const onKey = (key: Buffer): void => {
      if (["q", "Q", "\u0003", "\u0004"].includes(key.toString())) done();
    };
    const done = (): void => {
      if (stdin.isTTY) {
        stdin.off("data", onKey);
        stdin.setRawMode(false);
        stdin.pause();
      }
      signal.removeEventListener("abort", done);
      resolve();
    };
    if (signal.aborted) return resolve();
    signal.addEventListener("abort", done);
    void endWith(failed, done);
    if (stdin.isTTY) {
      stdin.setRawMode(true);
      stdin.resume();
      stdin.on("data", onKey);
    }
  });

const dev = async (context: Context, flags: DevFlags): Promise<ExitCode> => {
  const { output, env, cwd } = context;
  const startedAtMs = Date.now();
  const projectDir = requireProjectAbove(cwd);
  const first = await bundleProject(projectDir);
  let tellFailure: (error: CoppiceError) => void = () => undefined;
  const failed = new Promise<CoppiceError>((resolve) => {
    tellFailure = resolve;
  });
  const stack = await startLocalStack({
    projectDir,
    env,
    port: await choosePort(flags.port),
    ...(flags.slots === undefined ? {} : { slots: flags.slots }),
    onStage: (stage) => output.note(output.colors.dim(`  ${stage} …`)),
    onExit: ({ name, exitCode, logFile }) =>
      tellFailure(
        new CoppiceError("CPC_PROCESS_EXITED", {
          detail: `${name} ended with ${exitCode ?? "a signal"}.`,
          hint: `Read ${logFile}, then start \`coppice dev\` again.`,
        }),
      ),
  });
  const stopped = new AbortController();
  try {
    const client = await stack.openProject(first.manifest.project);
    await deployBundle(client, first);
    const url = await signInUrl(client, stack.server);
    printBanner(context, { stack, bundle: first, tookMs: Date.now() - startedAtMs, url });
    const redeploy = createRedeploy(context, client, projectDir, first.digest);
    const watch = await watchProject(projectDir, () => void redeploy());
    void reportRuns(context, client, stopped.signal);
    await awaitQuit(context, failed);
    watch.close();
  } finally {
    stopped.abort();
    output.note("  stopping …");
    await stack.stop();
  }
  const failure = await Promise.race([failed, Promise.resolve(undefined)]);
  if (failure === undefined) return EXIT.ok;
  output.problem(failure);
  return EXIT.failed;
};

export const devCommand = (act: Run): Command =>
  plainCommand("dev")
    .description("run everything on this machine, for this project")
    .option(
      "--port <n>",
      `the API's port (${DEFAULT_PORT} where it is free)`,
      wholeNumber("--port"),
    )
    .option("--slots <n>", "the worker's slots", wholeNumber("--slots"))
    .action((flags: DevFlags) => act(flags, (context) => dev(context, flags)));
