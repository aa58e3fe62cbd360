/** demo: the quickstart's pipeline from nothing to its scores, with everything on this machine. */
import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join, relative } from "node:path";

import { bundleProject, type ProjectBundle } from "@coppice/bundle";
import type { Client } from "@coppice/contract";
import { CoppiceError, formatDuration, isCoppiceError } from "@coppice/core";
import type { Command } from "commander";

import { type CommonFlags, type Context, plainCommand, type Run, wholeNumber } from "./command.ts";
import { deployBundle } from "./deploy.ts";
import { EXIT, type ExitCode } from "./exit-code.ts";
import { type LocalStack, startLocalStack } from "./local-stack.ts";
import { metricsTable } from "./metrics-table.ts";
import type { RunView } from "./run-model.ts";
import { watchRun } from "./watch-run.ts";

const PIPELINE = "late-flights";
const SLOTS = 4;
/** The simplest forecast first, the measure that it is trained for first. */
const SCORES = {
  rows: ["baseRate", "logistic", "network"],
  columns: ["logLoss", "areaUnderCurve", "brier", "calibrationError"],
};

/** Beside the working folder in this repository, or installed. @throws CPC_PROJECT_NOT_FOUND */
const findQuickstart = (cwd: string): string => {
  const here = join(cwd, "apps", "quickstart");
  if (existsSync(join(here, "coppice.config.ts"))) return here;
  try {
    const require = createRequire(import.meta.url);
    return dirname(require.resolve("@coppice/quickstart/package.json"));
  } catch (cause) {
    throw new CoppiceError("CPC_PROJECT_NOT_FOUND", {
      detail: "The demo's project was not found.",
      hint: "Run it from the root of the Coppice repository.",
      cause,
    });
  }
};

const printScores = async ({ output }: Context, client: Client, run: string): Promise<void> => {
  const page = await client.runs.outputs({ params: { run }, query: { step: "evaluate" } });
  const value = page.items[0]?.output;
  const table = value === undefined ? [] : metricsTable(value, SCORES, output.colors.dim);
  if (output.isJson) output.jsonLine({ run, evaluate: value ?? null });
  if (table.length === 0) return;
  output.line();
  for (const line of table) output.line(line);
};

const printWhereToLook = ({ output, cwd }: Context, projectDir: string, view: RunView): void => {
  const { colors } = output;
  const place = relative(cwd, projectDir) || ".";
  const rows: readonly (readonly [string, string])[] = [
    ["the project", `${place}/src/pipelines/${PIPELINE}.ts`],
    ["what the processes said", `${place}/.coppice/logs/`],
    ["start it again and look around", `cd ${place} && npx coppice dev`],
    ["then, in that folder", `npx coppice run ${view.id}`],
    ["", `npx coppice logs ${view.id}/train-network`],
    ["another run", `npx coppice run ${PIPELINE} --param seed=8 --watch`],
  ];
  output.line();
  for (const [what, how] of rows) output.line(`  ${colors.dim(what.padEnd(32))}${how}`);
};

const LAST_LINES = 5;
const lastLines = (file: string): readonly string[] =>
  existsSync(file) ? readFileSync(file, "utf8").trimEnd().split("\n").slice(-LAST_LINES) : [];

/** The error itself is printed elsewhere; here is where its story lies and what to type next. */
const printWhatNext = ({ output, cwd }: Context, projectDir: string, file: string): void => {
  output.note(`\n  the log: ${relative(cwd, file)}`);
  for (const line of lastLines(file)) output.note(output.colors.dim(`    ${line}`));
  output.note(`  look closer with: cd ${relative(cwd, projectDir) || "."} && npx coppice dev`);
};

interface DemoFlags extends CommonFlags {
  readonly slots?: number;
}

const play = async (
  context: Context,
  projectDir: string,
  stack: LocalStack,
  bundle: ProjectBundle,
): Promise<RunView> => {
  const { output, signal } = context;
  const client = await stack.openProject(bundle.manifest.project);
  const deployed = await deployBundle(client, bundle);
  const size = `${(deployed.sizeBytes / 1024 / 1024).toFixed(1)} MiB`;
  output.note(
    `  ${output.colors.green("✓")} code deployed: ${deployed.digest.slice(0, 12)}, ${size}\n`,
  );
  const run = await client.runs.submit({ body: { pipeline: PIPELINE } });
  const view = await watchRun({ client, output, runId: run.id, signal });
  if (signal.aborted) {
    // Otherwise it would go on at the next start, beside that one's own run.
    await client.runs
      .cancel({ params: { run: run.id }, body: { reason: "the demo was interrupted" } })
      .catch(() => undefined);
  }
  if (view.state === "succeeded") {
    await printScores(context, client, run.id);
    if (!output.isJson) printWhereToLook(context, projectDir, view);
  }
  return view;
};

const demo = async (context: Context, flags: DemoFlags): Promise<ExitCode> => {
  const { output, env, cwd, signal } = context;
  const startedAtMs = Date.now();
  const projectDir = findQuickstart(cwd);
  const { colors } = output;
  output.note(`\n  ${colors.bold("coppice demo")}\n`);
  let stack: LocalStack | undefined;
  // A process that ends by itself ends the wait for the run as well.
  const ended = new AbortController();
  let failure: CoppiceError | undefined;
  let file = join(projectDir, ".coppice", "logs", "worker.log");
  try {
    // First the code: where it does not load there is nothing to start.
    const bundle = await bundleProject(projectDir);
    stack = await startLocalStack({
      projectDir,
      env,
      slots: flags.slots ?? SLOTS,
      onExit: ({ name, exitCode, logFile }) => {
        file = logFile;
        failure = new CoppiceError("CPC_PROCESS_EXITED", {
          detail: `${name} ended with ${exitCode ?? "a signal"}.`,
          hint: `Read ${relative(cwd, logFile)}.`,
        });
        ended.abort();
      },
    });
    output.note(
      `  ${colors.green("✓")} PostgreSQL, API, scheduler and worker ready in ` +
        formatDuration(Date.now() - startedAtMs),
    );
    const both = AbortSignal.any([signal, ended.signal]);
    const view = await play({ ...context, signal: both }, projectDir, stack, bundle);
    if (failure !== undefined) throw failure;
    if (signal.aborted) return EXIT.interrupted;
    if (view.state !== "succeeded") printWhatNext(context, projectDir, file);
    return view.state === "succeeded" ? EXIT.ok : EXIT.failed;
  } catch (error) {
    if (!signal.aborted) printWhatNext(context, projectDir, file);
    throw isCoppiceError(error) && failure !== undefined ? failure : error;
  } finally {
    await stack?.stop();
    output.note(`\n  stopped; took ${formatDuration(Date.now() - startedAtMs)}\n`);
  }
};

export const demoCommand = (act: Run): Command =>
  plainCommand("demo")
    .description("run the quickstart's pipeline from nothing to its scores")
    .option("--slots <n>", `the worker's slots (${SLOTS})`, wholeNumber("--slots"))
    .action((flags: DemoFlags) => act(flags, (context) => demo(context, flags)));
