/**
 * Invariants of one run that its rows alone can break: outcomes, outputs, counts, attempts.
 */
import { FINAL_STEP_STATES, isFinalStepState, isJsonObject, type JsonValue } from "@coppice/core";
import { decodeSummary, isFinal, type StepIr, type StepSummary } from "@coppice/pipeline";
import { groupBy } from "./group-by.ts";
import type { AttemptRecord, RunRecord, StepRunRecord } from "./run-record.ts";

export type Say = (invariant: string, detail: string) => void;

interface OneStepRun {
  readonly row: StepRunRecord;
  readonly spec: StepIr;
  readonly attempts: readonly AttemptRecord[];
  readonly where: string;
}

const keyOf = (ref: { readonly step: number; readonly item: number }): string =>
  `${ref.step}/${ref.item}`;

/** Step runs that end without an attempt of theirs having failed. */
const ENDED_WAITING = new Set([
  "CPC_QUEUE_TIMEOUT",
  "CPC_MAP_INVALID",
  "CPC_MAP_TOO_LARGE",
  "CPC_WHEN_INVALID",
]);

export const checkRows = (run: RunRecord, expectAtRest: boolean, say: Say): void => {
  const attempts = groupBy(run.attempts, keyOf);
  const rows = new Map(run.stepRuns.map((row) => [keyOf(row), row]));
  checkSummaries(run, say);
  if (expectAtRest) checkRest(run, say);
  for (const [key, row] of rows) {
    const spec = run.graph.pipeline.steps[row.step];
    const where = `${run.id} ${spec?.key ?? row.step}[${row.item}]`;
    if (spec === undefined) {
      say("I5", `${where} is a step that the pipeline does not have`);
      continue;
    }
    const one = { row, spec, attempts: attempts.get(key) ?? [], where };
    checkOutcome(one, say);
    checkOutput(one, say);
    checkAttempts(one, say);
  }
  for (const [key, orphaned] of attempts) {
    if (!rows.has(key))
      say("I2", `${run.id} ${key} has ${orphaned.length} attempts and no step run`);
  }
  checkArtifacts(run, rows, say);
};

const checkRest = (run: RunRecord, say: Say): void => {
  if (run.state === "running") say("I1", `${run.id} is still running`);
  for (const row of run.stepRuns) {
    if (!isFinalStepState(row.state)) say("I11", `${run.id} ${keyOf(row)} is still ${row.state}`);
  }
};

const describe = (summary: StepSummary): string => JSON.stringify([summary.made, summary.counts]);

/** I5: what the planner sees of a step equals a recount of its rows. */
const checkSummaries = (run: RunRecord, say: Say): void => {
  const rows = groupBy(run.stepRuns, (row) => row.step);
  for (const [step, { key }] of run.graph.pipeline.steps.entries()) {
    const stored = decodeSummary(run.summaries[step] ?? []);
    const own = rows.get(step) ?? [];
    const counts: Record<string, number> = {};
    for (const row of own) counts[row.state] = (counts[row.state] ?? 0) + 1;
    const isSame =
      stored.made === own.length &&
      Object.keys(stored.counts).length === Object.keys(counts).length &&
      Object.entries(stored.counts).every(([state, count]) => counts[state] === count);
    if (!isSame) {
      const recount = JSON.stringify([own.length, counts]);
      say("I5", `${run.id} ${key}: stored ${describe(stored)}, recounted ${recount}`);
    }
    if (own.some((row, index) => row.item !== index))
      say("I5", `${run.id} ${key}: items have gaps`);
    if (run.state !== "running" && !isFinal(stored)) {
      say("I1", `${run.id} is ${run.state}, but ${key} is not final: ${describe(stored)}`);
    }
  }
};

/** I2: a step run has one outcome, and it is that of its last attempt. */
const checkOutcome = ({ row, attempts, where }: OneStepRun, say: Say): void => {
  const succeeded = attempts.filter((attempt) => attempt.outcome === "succeeded");
  if (succeeded.length !== Number(row.state === "succeeded")) {
    say("I2", `${where} is ${row.state} and has ${succeeded.length} attempts that succeeded`);
  }
  const own = attempts.find((attempt) => attempt.attempt === row.attempt);
  const fits = (): boolean => {
    switch (row.state) {
      case "succeeded":
      case "pruned":
        return own?.outcome === row.state;
      case "failed":
        return own === undefined
          ? ENDED_WAITING.has(row.errorCode ?? "")
          : own.outcome === "failed";
      case "quarantined":
        return own?.outcome === "lost";
      case "cancelled":
        return own === undefined || own.outcome === "cancelled" || own.outcome === "lost";
      default:
        // The next attempt has not ended yet, or the step never ran.
        return own === undefined;
    }
  };
  if (!fits()) {
    const outcome = own?.outcome ?? "not there";
    say("I2", `${where} is ${row.state}, but its attempt ${row.attempt} is ${outcome}`);
  }
};

/** Steps of tests may tell who made an output: `{ madeBy: { attempt, lease? } }`. */
const madeBy = (output: JsonValue): { attempt?: JsonValue; lease?: JsonValue } | undefined => {
  const maker = isJsonObject(output) ? output["madeBy"] : undefined;
  return isJsonObject(maker) ? maker : undefined;
};

/** I3: outputs come from the committed attempt. */
const checkOutput = ({ row, attempts, where }: OneStepRun, say: Say): void => {
  if (row.output === null) return;
  if (row.state !== "succeeded") say("I3", `${where} is ${row.state} and has an output`);
  const maker = madeBy(row.output);
  if (maker?.attempt !== undefined && maker.attempt !== row.attempt) {
    const made = JSON.stringify(maker.attempt);
    say("I3", `${where}: attempt ${row.attempt} was committed, its output is of attempt ${made}`);
  }
  const lease = attempts.find((attempt) => attempt.attempt === row.attempt)?.lease;
  if (maker?.lease !== undefined && maker.lease !== lease) {
    say("I3", `${where}: its output was made under another lease than attempt ${row.attempt}'s`);
  }
};

const checkArtifacts = (
  run: RunRecord,
  rows: ReadonlyMap<string, StepRunRecord>,
  say: Say,
): void => {
  for (const ref of run.artifacts) {
    const row = rows.get(keyOf(ref));
    if (row?.state === "succeeded" && row.attempt === ref.attempt) continue;
    const at = `${row?.state ?? "missing"}, attempt ${row?.attempt ?? 0}`;
    say(
      "I3",
      `${run.id} ${keyOf(ref)}: artifact ${ref.name} of attempt ${ref.attempt}; it is ${at}`,
    );
  }
};

/** I7: numbered without gaps, and no more than the budgets allow. */
const checkAttempts = ({ row, spec, attempts, where }: OneStepRun, say: Say): void => {
  if (attempts.some((attempt, index) => attempt.attempt !== index + 1)) {
    say("I7", `${where} has attempts ${attempts.map((one) => one.attempt).join(", ")}`);
  }
  const count = (outcome: string): number =>
    attempts.filter((attempt) => attempt.outcome === outcome).length;
  const [failed, lost, released] = [count("failed"), count("lost"), count("released")];
  const { attemptsMax, lostMax } = spec.retry;
  if (failed > attemptsMax) say("I7", `${where} failed ${failed} times, allowed ${attemptsMax}`);
  if (lost > lostMax) say("I7", `${where} was lost ${lost} times, allowed ${lostMax}`);
  if (attempts.length > attemptsMax + lost + released) {
    say("I7", `${where} has ${attempts.length} attempts, allowed ${attemptsMax + lost + released}`);
  }
  if (row.failed !== failed || row.lost !== lost) {
    say(
      "I7",
      `${where} counts ${row.failed} failed, ${row.lost} lost; there are ${failed}, ${lost}`,
    );
  }
  const isEnded = (FINAL_STEP_STATES as readonly string[]).includes(row.state);
  const expected = attempts.length + (isEnded && attempts.length > 0 ? 0 : 1);
  const mayWait = isEnded && row.attempt === attempts.length + 1;
  if (row.attempt !== expected && !mayWait) {
    say("I7", `${where} is at attempt ${row.attempt} with ${attempts.length} in its history`);
  }
};
