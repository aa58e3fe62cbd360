/** Follows a run to its end and shows it: redrawn on a terminal, a line per change elsewhere. */
import type { Client } from "@coppice/contract";

import type { Output } from "./output.ts";
import {
  FAILURES_SHOWN,
  formatEvent,
  formatFailures,
  formatRunHead,
  formatTree,
} from "./run-format.ts";
import { applyEvent, createRunView, failuresOf, hasEnded, type RunView } from "./run-model.ts";

const REDRAW_MS = 120;

/** A map's length is known once it is open, which no event tells. */
const refreshTotals = async (client: Client, view: RunView): Promise<void> => {
  const run = await client.runs.get({ params: { run: view.id } });
  for (const { key, total } of run.steps) {
    const step = view.steps.get(key);
    if (step !== undefined) step.total = total ?? undefined;
  }
};

const needsTotals = (view: RunView): boolean =>
  [...view.steps.values()].some(
    (step) => step.isMapped && step.total === undefined && step.items.size > 0,
  );

export interface WatchOptions {
  readonly client: Client;
  readonly output: Output;
  readonly runId: string;
  readonly signal: AbortSignal;
}

/** @returns the run as it ended, or as it was when the signal came */
export const watchRun = async ({
  client,
  output,
  runId,
  signal,
}: WatchOptions): Promise<RunView> => {
  const view = createRunView(await client.runs.get({ params: { run: runId } }));
  const { colors } = output;
  const draw = (): void => {
    const nowMs = Date.now();
    output.draw([formatRunHead(view, nowMs, colors), "", ...formatTree(view, nowMs, colors)]);
  };
  const timer = output.isLive ? setInterval(draw, REDRAW_MS) : undefined;
  try {
    for await (const event of client.events(view.id, { signal })) {
      if (!applyEvent(view, event)) continue;
      if (output.isJson) output.jsonLine(event);
      else if (!output.isLive) output.line(formatEvent(event, view, colors));
      if (needsTotals(view)) await refreshTotals(client, view);
      if (hasEnded(view)) break;
    }
    if (!hasEnded(view) && !signal.aborted) await readTheEnd(client, view);
  } finally {
    clearInterval(timer);
    if (output.isLive) draw();
    output.keep();
  }
  if (!output.isJson && !signal.aborted) {
    await addStacks(client, view);
    for (const line of formatFailures(view, colors)) output.line(line);
  }
  return view;
};

/** Events say what failed; where in the code it failed stands in the step runs. */
const addStacks = async (client: Client, view: RunView): Promise<void> => {
  const failures = failuresOf(view).slice(0, FAILURES_SHOWN);
  await Promise.all(
    failures.map(async ({ step, item }) => {
      const { error } = await client.items.get({
        params: { run: view.id, step: step.key, item: item.item },
      });
      if (error?.stack !== undefined && item.error !== undefined) {
        item.error = { ...item.error, stack: error.stack };
      }
    }),
  );
};

/** Where the stream ended before the run's last event was seen. */
const readTheEnd = async (client: Client, view: RunView): Promise<void> => {
  for (;;) {
    const { items, isEnd } = await client.runs.events({
      params: { run: view.id },
      query: { after: view.seq },
    });
    for (const event of items) applyEvent(view, event);
    if (isEnd || items.length === 0) break;
  }
  const run = await client.runs.get({ params: { run: view.id } });
  view.state = run.state;
};

/** For a run that is only looked at: its events to this moment. */
export const readRun = async (client: Client, runId: string): Promise<RunView> => {
  const view = createRunView(await client.runs.get({ params: { run: runId } }));
  await readTheEnd(client, view);
  await addStacks(client, view);
  return view;
};
