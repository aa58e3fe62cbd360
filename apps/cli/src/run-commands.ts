/** run, runs, show, cancel, why: what a person does with runs. */
import { bundleProject, findProject } from "@coppice/bundle";
import type { Client } from "@coppice/contract";
import {
  CoppiceError,
  isCoppiceError,
  type JsonObject,
  RUN_STATES,
  type RunState,
} from "@coppice/core";
import type { Command } from "commander";

import {
  collect,
  type CommonFlags,
  type Context,
  type Run,
  serverCommand,
  wholeNumber,
} from "./command.ts";
import { deployBundle } from "./deploy.ts";
import { EXIT, type ExitCode } from "./exit-code.ts";
import { formatAge, formatFailures, formatRunHead, formatTree, paintState } from "./run-format.ts";
import { parseParams } from "./run-params.ts";
import { formatStep, looksLikeRun, parseStepAddress } from "./step-address.ts";
import { formatTable } from "./table.ts";
import { readRun, watchRun } from "./watch-run.ts";

interface RunFlags extends CommonFlags {
  readonly param: readonly string[];
  readonly params?: string;
  readonly watch?: boolean;
  readonly pipelineVersion?: number;
  readonly priority?: number;
}

const show = async ({ output, client }: Context, run: string): Promise<ExitCode> => {
  const api = client();
  const detail = await api.runs.get({ params: { run } });
  if (output.isJson) {
    output.jsonLine(detail);
    return EXIT.ok;
  }
  const view = await readRun(api, detail.id);
  const nowMs = Date.now();
  const { colors } = output;
  output.line(formatRunHead(view, nowMs, colors));
  output.line(colors.dim(`version ${detail.version}  params ${JSON.stringify(detail.params)}`));
  output.line();
  for (const line of formatTree(view, nowMs, colors)) output.line(line);
  for (const line of formatFailures(view, colors)) output.line(line);
  return EXIT.ok;
};

/** Brings the project's code along where the pipeline is the project's. */
const bringCode = async (
  context: Context,
  api: Client,
  pipeline: string,
): Promise<{ readonly params: JsonObject; readonly version: number | undefined } | undefined> => {
  const place = findProject(context.cwd);
  if (place === undefined) return undefined;
  const bundle = await bundleProject(place.dir);
  const found = bundle.manifest.pipelines.find(({ name }) => name === pipeline);
  if (found === undefined) return undefined;
  const deployed = await deployBundle(api, bundle);
  if (deployed.isNew) context.output.note(`deployed bundle ${deployed.digest.slice(0, 12)}`);
  // Named, because code that was deployed before keeps its version, which may not be the newest.
  const version = deployed.versions.find(({ name }) => name === pipeline)?.version;
  return { params: found.params, version };
};

const schemaOnServer = async (api: Client, name: string): Promise<JsonObject> => {
  const { params } = await api.pipelines.get({ params: { name } });
  return params;
};

/** A text that names no pipeline may name a run: then that one is shown. */
const showInstead = async (context: Context, text: string, missing: unknown): Promise<ExitCode> => {
  try {
    return await show(context, text);
  } catch (error) {
    if (isCoppiceError(error) && error.code === "CPC_RUN_AMBIGUOUS") throw error;
    throw missing;
  }
};

const isMissingPipeline = (error: unknown): boolean =>
  isCoppiceError(error) && error.code === "CPC_PIPELINE_NOT_FOUND";

const start = async (context: Context, pipeline: string, flags: RunFlags): Promise<ExitCode> => {
  const { output } = context;
  if (looksLikeRun(pipeline)) return show(context, pipeline);
  const api = context.client();
  const isPinned = flags.pipelineVersion !== undefined;
  let schema: JsonObject | undefined;
  let version = flags.pipelineVersion;
  try {
    const own = isPinned ? undefined : await bringCode(context, api, pipeline);
    version ??= own?.version;
    schema = own?.params ?? (await schemaOnServer(api, pipeline));
  } catch (error) {
    if (isMissingPipeline(error)) return showInstead(context, pipeline, error);
    throw error;
  }
  const run = await api.runs.submit({
    body: {
      pipeline,
      params: parseParams(flags.param, flags.params, schema) as Record<string, never>,
      ...(version === undefined ? {} : { version }),
      ...(flags.priority === undefined ? {} : { priority: flags.priority }),
    },
  });
  if (flags.watch !== true) {
    output.result(run, () => [
      `${output.colors.green("started")} ${run.id}  ${run.pipeline} version ${run.version}`,
      output.colors.dim(`coppice run ${run.id}`),
    ]);
    return EXIT.ok;
  }
  if (output.isJson) output.jsonLine(run);
  const view = await watchRun({ client: api, output, runId: run.id, signal: context.signal });
  if (context.signal.aborted) {
    output.note(`${run.id} goes on; stop it with: coppice cancel ${run.id}`);
    return EXIT.interrupted;
  }
  return view.state === "succeeded" ? EXIT.ok : EXIT.failed;
};

interface ListFlags extends CommonFlags {
  readonly pipeline?: string;
  readonly state?: string;
  readonly limit?: number;
  readonly cursor?: string;
}

const requireState = (state: string): RunState => {
  const found = RUN_STATES.find((known) => known === state);
  if (found !== undefined) return found;
  throw new CoppiceError("CPC_INVALID_INPUT", {
    detail: `expected one of ${RUN_STATES.join(", ")} for --state. Received: ${state}`,
  });
};

const list = async ({ output, client }: Context, flags: ListFlags): Promise<ExitCode> => {
  const page = await client().runs.list({
    query: {
      limit: flags.limit ?? 20,
      ...(flags.cursor === undefined ? {} : { cursor: flags.cursor }),
      ...(flags.pipeline === undefined ? {} : { pipeline: flags.pipeline }),
      ...(flags.state === undefined ? {} : { state: requireState(flags.state) }),
    },
  });
  output.result(page, () => {
    if (page.items.length === 0) return ["no runs; start one with: coppice run <pipeline> --watch"];
    const nowMs = Date.now();
    return formatTable({
      head: ["RUN", "PIPELINE", "STATE", "AGE", "TOOK"],
      rows: page.items.map((run) => [
        run.id,
        run.pipeline,
        paintState(run.state, output.colors),
        formatAge(run.createdAt, nowMs),
        run.finishedAt === null ? "" : formatAge(run.createdAt, Date.parse(run.finishedAt)),
      ]),
      dim: output.colors.dim,
      right: [3, 4],
    });
  });
  return EXIT.ok;
};

const cancel = async (
  { output, client }: Context,
  address: string,
  reason: string | undefined,
): Promise<ExitCode> => {
  const { run, step, item } = parseStepAddress(address);
  const why = reason === undefined ? {} : { reason };
  const answer =
    step === undefined
      ? await client().runs.cancel({ params: { run }, body: why })
      : await client().steps.cancel({
          params: { run, step },
          body: item === undefined ? why : { ...why, item },
        });
  output.result({ ...answer, step: step ?? null, item: item ?? null }, () => [
    step === undefined
      ? `cancelling ${answer.id}`
      : `cancelling ${answer.id}/${formatStep(step, item ?? null, item !== undefined)}`,
  ]);
  return EXIT.ok;
};

const why = async ({ output, client }: Context, run: string): Promise<ExitCode> => {
  const api = client();
  const [report, detail] = await Promise.all([
    api.runs.why({ params: { run } }),
    api.runs.get({ params: { run } }),
  ]);
  const mapped = new Set(detail.steps.filter(({ isMapped }) => isMapped).map(({ key }) => key));
  output.result(report, () => {
    if (report.steps.length === 0) return [`${report.runId} is ${report.state}: nothing waits`];
    return formatTable({
      head: ["STEP", "STATE", "REASON", "WHY"],
      rows: report.steps.map(({ step, item, state, reason, message }) => [
        formatStep(step, item, mapped.has(step)),
        paintState(state, output.colors),
        reason,
        message,
      ]),
      dim: output.colors.dim,
    });
  });
  return EXIT.ok;
};

export const runCommands = (act: Run): readonly Command[] => [
  serverCommand("run")
    .description("start a pipeline of this project or of the server; show a run by its id")
    .argument("<pipeline|run>")
    .option("-p, --param <name=value>", "a parameter; may be repeated", collect, [])
    .option("--params <json>", "parameters as a JSON object")
    .option("-w, --watch", "follow it to its end; the exit code is the run's")
    .option(
      "--pipeline-version <n>",
      "this version, not the newest",
      wholeNumber("--pipeline-version"),
    )
    .option("--priority <n>", "from -100 to 100, higher first", wholeNumber("--priority"))
    .action((pipeline: string, flags: RunFlags) =>
      act(flags, (context) => start(context, pipeline, flags)),
    ),
  serverCommand("runs")
    .description("list runs, newest first")
    .argument("[run]", "show this one")
    .option("--pipeline <name>")
    .option("--state <state>", RUN_STATES.join(", "))
    .option("--limit <n>", "at most this many", wholeNumber("--limit"))
    .option("--cursor <text>", "go on after a page (nextCursor)")
    .action((run: string | undefined, flags: ListFlags) =>
      act(flags, (context) => (run === undefined ? list(context, flags) : show(context, run))),
    ),
  serverCommand("show")
    .description("show a run with all its steps")
    .argument("<run>", "its id, or any unique beginning or end of it")
    .action((run: string, flags: CommonFlags) => act(flags, (context) => show(context, run))),
  serverCommand("cancel")
    .description("cancel a run, a step, or one item of a mapped step")
    .argument("<run>[/<step>[<item>]]")
    .option("--reason <text>")
    .action((address: string, flags: CommonFlags & { readonly reason?: string }) =>
      act(flags, (context) => cancel(context, address, flags.reason)),
    ),
  serverCommand("why")
    .description("say what every unfinished step of a run waits for")
    .argument("<run>")
    .action((run: string, flags: CommonFlags) => act(flags, (context) => why(context, run))),
];
