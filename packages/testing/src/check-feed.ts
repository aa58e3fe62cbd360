/**
 * Invariants of one run's feed, by playing it from the beginning: numbers without gaps, allowed
 * moves only, no step before its rule holds, nothing ordinary after a cancellation.
 *
 * One event is one commit. What must stay true: the states after the whole commit decide, because
 * the planner looks only once all of a commit's events are counted in.
 */
import type { StepState } from "@coppice/core";
import {
  decideRule,
  decodeSummary,
  emptySummary,
  isFinal,
  type StepSummary,
  tallyOf,
  TRANSITIONS,
} from "@coppice/pipeline";
import type { Say } from "./check-rows.ts";
import type { Change, EventRecord, RunRecord } from "./run-record.ts";

interface Seen {
  readonly state: StepState;
  readonly attempt: number;
}

interface Replay {
  readonly run: RunRecord;
  readonly say: Say;
  readonly rows: Map<string, Seen>;
  readonly steps: Map<StepState, number>[];
  /** From which commit on the run is being cancelled. */
  cancelledAt: number | undefined;
  ended: string | undefined;
}

type StepChange = Required<Pick<Change, "step" | "item" | "state" | "attempt">>;

const isOfStep = (change: Change): change is StepChange =>
  change.step !== undefined && change.state !== undefined;

const STARTED = new Set<StepState>(["ready", "queued", "running"]);

/** Several moves may stand behind one change: it tells only how the commit left the row. */
const reachable = new Map<StepState, ReadonlySet<StepState>>();
for (const from of Object.keys(TRANSITIONS) as StepState[]) {
  const found = new Set<StepState>(TRANSITIONS[from]);
  for (const state of found) for (const next of TRANSITIONS[state]) found.add(next);
  reachable.set(from, found);
}

export const checkFeed = (run: RunRecord, say: Say): void => {
  const replay: Replay = {
    run,
    say,
    rows: new Map(),
    steps: run.graph.pipeline.steps.map(() => new Map<StepState, number>()),
    cancelledAt: undefined,
    ended: undefined,
  };
  let next = 1;
  for (const [index, event] of run.events.entries()) {
    checkNumbers(replay, event, next);
    next = event.lastSeq + 1;
    playCommit(replay, event, index);
  }
  if (next !== run.nextSeq)
    say("feed", `${run.id} has events up to ${next - 1}, not ${run.nextSeq - 1}`);
  checkEnd(replay);
};

const checkNumbers = ({ run, say }: Replay, event: EventRecord, next: number): void => {
  if (event.firstSeq !== next)
    say("feed", `${run.id} goes on with ${event.firstSeq} instead of ${next}`);
  const length = event.lastSeq - event.firstSeq + 1;
  if (event.changes.length !== length) {
    say(
      "feed",
      `${run.id} at ${event.firstSeq}: ${event.changes.length} changes, ${length} numbers`,
    );
  }
  if (event.firstSeq === 1 && event.changes[0]?.run !== "running") {
    say("feed", `${run.id} does not begin with its own beginning`);
  }
};

const playCommit = (replay: Replay, event: EventRecord, index: number): void => {
  const { run, say } = replay;
  if (replay.ended !== undefined) say("feed", `${run.id} changes after it was ${replay.ended}`);
  const first = new Map<number, StepState>();
  for (const change of event.changes) {
    if (isOfStep(change)) playStep(replay, change, index, first);
    else if (change.run === "cancelling") replay.cancelledAt ??= index;
    else if (change.run !== "running") replay.ended = change.run;
  }
  for (const [step, state] of first) checkRule(replay, step, state);
};

const playStep = (
  replay: Replay,
  change: StepChange,
  index: number,
  first: Map<number, StepState>,
): void => {
  const { run, say, rows, steps } = replay;
  const { step, item, state, attempt } = change;
  const key = `${step}/${item}`;
  const before = rows.get(key);
  const from = before?.state ?? "pending";
  const isNewAttempt = before !== undefined && attempt > before.attempt;
  const isAllowed =
    reachable.get(from)?.has(state) === true &&
    (from !== state || isNewAttempt || from === "queued");
  if (!isAllowed) say("feed", `${run.id} ${key} goes from ${from} to ${state}`);
  if (before !== undefined && attempt < before.attempt) {
    say("I7", `${run.id} ${key} goes from attempt ${before.attempt} back to ${attempt}`);
  }
  const counts = steps[step];
  if (counts !== undefined) {
    if (counts.size === 0) first.set(step, state);
    if (before !== undefined) counts.set(from, (counts.get(from) ?? 0) - 1);
    counts.set(state, (counts.get(state) ?? 0) + 1);
  }
  rows.set(key, { state, attempt });
  const isOrdinary = run.graph.pipeline.steps[step]?.finally === false;
  const isLate = replay.cancelledAt !== undefined && index > replay.cancelledAt;
  if (isLate && isOrdinary && (STARTED.has(state) || state === "succeeded")) {
    say("I10", `${run.id} ${key} becomes ${state} after the run was cancelled`);
  }
};

/** As the planner would see the step at this point. */
const summaryAt = (replay: Replay, step: number, known: readonly StepSummary[]): StepSummary => {
  const { run, steps } = replay;
  const spec = run.graph.pipeline.steps[step];
  const stored = decodeSummary(run.summaries[step] ?? []);
  const counts = steps[step] ?? new Map<StepState, number>();
  let made = 0;
  for (const count of counts.values()) made += count;
  if (made > 0) {
    return { total: stored.total, isOpen: true, made, counts: Object.fromEntries(counts) };
  }
  const isEmptyMap = stored.total === 0 && stored.made === 0;
  const verdict = isEmptyMap
    ? decideRule(spec?.rule ?? "all_success", tallyOf(run.graph.upstream[step] ?? [], known))
    : "wait";
  // An empty map leaves no row: it is final from the moment that its rule fires.
  return verdict === "fire"
    ? { total: 0, isOpen: true, made: 0, counts: {} }
    : emptySummary(spec?.map !== undefined);
};

const summariesAt = (replay: Replay): StepSummary[] => {
  const known: StepSummary[] = [];
  for (let step = 0; step < replay.steps.length; step += 1)
    known.push(summaryAt(replay, step, known));
  return known;
};

/** I4: what a step first becomes follows from its rule over what is upstream. */
const checkRule = (replay: Replay, step: number, state: StepState): void => {
  const { run, say } = replay;
  const spec = run.graph.pipeline.steps[step];
  if (spec === undefined || state === "cancelled") return;
  const summaries = summariesAt(replay);
  const verdict = decideRule(spec.rule, tallyOf(run.graph.upstream[step] ?? [], summaries));
  const where = `${run.id} ${spec.key} (${spec.rule})`;
  if (STARTED.has(state) && verdict !== "fire")
    say("I4", `${where} starts while its rule says ${verdict}`);
  if (state === "upstream_failed" && verdict !== "upstream_failed") {
    say("I4", `${where} is upstream_failed while its rule says ${verdict}`);
  }
  if (
    state === "skipped" &&
    verdict !== "skip" &&
    !(verdict === "fire" && spec.when !== undefined)
  ) {
    say("I4", `${where} is skipped while its rule says ${verdict}`);
  }
  const isEarly = run.graph.ordinary.some((other) => {
    const summary = summaries[other];
    return summary !== undefined && !isFinal(summary);
  });
  if (spec.finally && isEarly) say("I4", `${where} is decided before all ordinary steps are final`);
};

const checkEnd = ({ run, say, rows, ended, cancelledAt }: Replay): void => {
  for (const row of run.stepRuns) {
    const told = rows.get(`${row.step}/${row.item}`);
    if (told?.state !== row.state || told.attempt !== row.attempt) {
      const last = told === undefined ? "nothing" : `${told.state}, attempt ${told.attempt}`;
      say(
        "feed",
        `${run.id} ${row.step}/${row.item} is ${row.state}, attempt ${row.attempt}; told: ${last}`,
      );
    }
  }
  if (rows.size !== run.stepRuns.length) {
    say("feed", `${run.id} tells of ${rows.size} step runs, there are ${run.stepRuns.length}`);
  }
  const state = ended ?? "running";
  if (state !== run.state) say("feed", `${run.id} is ${run.state}, its feed ends with ${state}`);
  if (run.isCancelled !== (cancelledAt !== undefined)) {
    say("feed", `${run.id}: the cancellation is not told, or told without one`);
  }
};
