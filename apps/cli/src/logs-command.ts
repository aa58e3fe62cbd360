/** logs: of one attempt, of a step, of a whole run; followed with -f. */
import type { Client, RunDetail } from "@coppice/contract";
import type { Command } from "commander";

import { type CommonFlags, type Context, type Run, serverCommand, wholeNumber } from "./command.ts";
import { EXIT, type ExitCode } from "./exit-code.ts";
import { formatLogLine } from "./log-line.ts";
import type { Output } from "./output.ts";
import { formatStep, parseStepAddress, type StepAddress } from "./step-address.ts";

interface LogFlags extends CommonFlags {
  readonly follow?: boolean;
  readonly attempt?: number;
}

interface Source {
  readonly run: string;
  readonly step: string;
  readonly item: number;
  readonly attempt: number;
  /** What stands before its lines; empty where there is only one source. */
  readonly label: string;
}

/** Whole lines only, so that lines of several sources never mix. */
const lineWriter = (output: Output, source: Source) => {
  let rest = "";
  const write = (line: string): void => {
    if (output.isJson) {
      const { step, item, attempt } = source;
      output.jsonLine({ step, item, attempt, line });
    } else {
      const text = formatLogLine(line, output.colors);
      output.line(source.label === "" ? text : `${output.colors.dim(source.label)}  ${text}`);
    }
  };
  return {
    add: (text: string): void => {
      const lines = (rest + text).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) write(line);
    },
    end: (): void => {
      if (rest !== "") write(rest);
    },
  };
};

const printAll = async (client: Client, output: Output, source: Source): Promise<void> => {
  const { run, step, item, attempt } = source;
  const writer = lineWriter(output, source);
  for (let offset = 0; ; ) {
    const chunk = await client.attempts.logs({
      params: { run, step, item, attempt },
      query: { offset },
    });
    writer.add(chunk.text);
    if (chunk.isEnd || chunk.nextOffset === offset) break;
    offset = chunk.nextOffset;
  }
  writer.end();
};

const follow = async (
  client: Client,
  output: Output,
  source: Source,
  signal: AbortSignal,
): Promise<void> => {
  const { run, step, item, attempt } = source;
  const writer = lineWriter(output, source);
  for await (const chunk of client.logs({ run, step, item, attempt }, { signal })) {
    writer.add(chunk.text);
    if (chunk.isEnd) break;
  }
  writer.end();
};

const wantedSteps = (run: RunDetail, { step }: StepAddress): RunDetail["steps"] =>
  step === undefined ? run.steps : run.steps.filter(({ key }) => key === step);

/** Every attempt that has begun, in order of steps, items and attempts. */
const findSources = async (
  client: Client,
  run: RunDetail,
  address: StepAddress,
  attempt: number | undefined,
): Promise<readonly Source[]> => {
  const found: Source[] = [];
  for (const { key, isMapped } of wantedSteps(run, address)) {
    let cursor: string | undefined;
    do {
      const page = await client.steps.get({
        params: { run: run.id, step: key },
        query: cursor === undefined ? { limit: 200 } : { limit: 200, cursor },
      });
      for (const item of page.items.items) {
        if (address.item !== undefined && item.item !== address.item) continue;
        if (item.startedAt === null && item.attempt <= 1) continue;
        found.push({
          run: run.id,
          step: key,
          item: item.item,
          attempt: attempt ?? item.attempt,
          label: formatStep(key, item.item, isMapped),
        });
      }
      cursor = page.items.nextCursor ?? undefined;
    } while (cursor !== undefined);
  }
  return found;
};

/** Attempts as they start, until the run ends; each is followed beside the others. */
const followRun = async (
  { output, signal }: Context,
  client: Client,
  run: RunDetail,
  address: StepAddress,
): Promise<void> => {
  const wanted = new Map(wantedSteps(run, address).map((step) => [step.key, step]));
  const tails: Promise<void>[] = [];
  const seen = new Set<string>();
  for await (const event of client.events(run.id, { signal })) {
    const step = event.step === null ? undefined : wanted.get(event.step);
    const item = event.item ?? 0;
    if (step === undefined || event.state !== "running") continue;
    if (address.item !== undefined && item !== address.item) continue;
    const attempt = event.attempt ?? 1;
    const label = formatStep(step.key, item, step.isMapped);
    const key = `${label}#${attempt}`;
    if (seen.has(key)) continue;
    seen.add(key);
    tails.push(
      follow(client, output, { run: run.id, step: step.key, item, attempt, label }, signal),
    );
  }
  await Promise.all(tails);
};

const logs = async (context: Context, text: string, flags: LogFlags): Promise<ExitCode> => {
  const { output, signal } = context;
  const address = parseStepAddress(text);
  const client = context.client();
  const run = await client.runs.get({ params: { run: address.run } });
  if (address.step !== undefined) {
    // Asks for it by name, so that a wrong one is answered by the server with its hint.
    await client.steps.get({ params: { run: run.id, step: address.step }, query: { limit: 1 } });
  }
  if (flags.follow === true) {
    await followRun(context, client, run, address);
    return signal.aborted ? EXIT.interrupted : EXIT.ok;
  }
  const sources = await findSources(client, run, address, flags.attempt);
  if (sources.length === 0) output.note("nothing has started yet; follow it with -f");
  for (const source of sources) {
    await printAll(client, output, sources.length === 1 ? { ...source, label: "" } : source);
  }
  return EXIT.ok;
};

export const logsCommand = (act: Run): Command =>
  serverCommand("logs")
    .description("print what the code of a run's steps logged")
    .argument("<run>[/<step>[<item>]]")
    .option("-f, --follow", "go on as it grows, until the run ends")
    .option("--attempt <n>", "this attempt, not the newest", wholeNumber("--attempt"))
    .action((address: string, flags: LogFlags) =>
      act(flags, (context) => logs(context, address, flags)),
    );
