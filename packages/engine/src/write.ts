/**
 * Last part of a commit: writes what changed, set-wise, with the runs' feeds and the outbox.
 */
import type { JsonValue } from "@coppice/core";
import { encodeSummary } from "@coppice/pipeline";
import type { Bell } from "@coppice/queue";
import {
  addToPools,
  deleteOutbox,
  gatherWrites,
  insertArtifactRefs,
  insertAttempts,
  insertEvents,
  insertOutbox,
  insertRuns,
  insertStepRuns,
  type NewEvents,
  type NewStepRun,
  type Queryable,
  startStepRuns,
  succeedStepRuns,
  updateRuns,
  updateStepRuns,
} from "@coppice/store";

import { classIdOf, holdsPools, poolsOf, priorityOf } from "./admit.ts";
import type { Facts } from "./facts.ts";
import type { RowWork, RunWork, WorkingSet } from "./working-set.ts";

export const bellOf = (facts: Facts, row: RowWork): Bell => ({
  classKey: facts.classById(classIdOf(row))?.key ?? "cpu",
  runId: row.run.id,
  step: row.step,
  item: row.item,
  attempt: row.attempt,
  ring: row.ring,
  priority: priorityOf(row),
});

const poolsJson = (row: RowWork): string | null => {
  const pools = poolsOf(row);
  return pools.length === 0
    ? null
    : JSON.stringify(pools.map(({ name, weight }) => ({ name, weight })));
};

const toWrite = (row: RowWork): NewStepRun => ({
  runId: row.run.id,
  step: row.step,
  item: row.item,
  state: row.state,
  attempt: row.attempt,
  ring: row.ring,
  failed: row.failed,
  lost: row.lost,
  workerId: row.workerId,
  lease: row.lease,
  isCancelRequested: row.isCancelRequested,
  dueInMs: row.dueInMs,
  isNewlyReady: row.isNewlyReady,
  output: row.output === undefined ? null : JSON.stringify(row.output),
  error: row.error === null ? null : JSON.stringify(row.error),
  projectId: row.run.version.projectId,
  classId: classIdOf(row),
  priority: priorityOf(row),
  pools: poolsJson(row),
  name: row.name,
});

/** One row's new state, as it stands in the run's feed. */
const changeOf = (row: RowWork): JsonValue => ({
  step: row.step,
  item: row.item,
  state: row.state,
  attempt: row.attempt,
  ...(row.name === null ? {} : { name: row.name }),
  ...(row.workerId === null ? {} : { worker: row.workerId }),
  ...(row.error === null ? {} : { error: { code: row.error.code, message: row.error.message } }),
});

/** A row that ended one attempt and began the next in the same commit has changed, too. */
export const isTold = (row: RowWork): boolean =>
  row.isNew || row.state !== row.savedState || row.attempt !== row.savedAttempt;

export const write = async (
  tx: Queryable,
  set: WorkingSet,
  bells: readonly Bell[],
  rungOutboxIds: readonly number[],
  leaseMs: number,
): Promise<number> => {
  const runs = [...set.runs.values()].filter(
    (run) => run.changedRows.size > 0 || run.changes.length > 0 || run.isTouched,
  );
  const changed = runs.flatMap((run) => [...run.changedRows]);
  for (const run of runs) {
    for (const row of run.changedRows) if (isTold(row)) run.changes.push(changeOf(row));
    if (run.state !== "running") run.changes.push(endChange(run));
  }
  const updated = changed.filter((row) => !row.isNew);
  const outbox =
    bells.length === 0
      ? Promise.resolve(0)
      : insertOutbox(
          tx,
          bells.map((bell) => ({ ...bell })),
        );
  const writes = gatherWrites();
  await Promise.all([
    insertRuns(
      writes,
      runs.flatMap((run) =>
        run.first === undefined ? [] : [{ ...run.first, ...afterState(run) }],
      ),
    ),
    insertStepRuns(writes, changed.filter((row) => row.isNew).map(toWrite), leaseMs),
    ...writeChanged(writes, updated, leaseMs),
    insertAttempts(writes, set.attempts),
    insertArtifactRefs(writes, set.artifacts),
    updateRuns(
      writes,
      runs
        .filter((run) => run.first === undefined)
        .map((run) => ({ id: run.id, ...afterState(run) })),
    ),
    insertEvents(writes, runs.filter((run) => run.changes.length > 0).map(eventsOf)),
    addToPools(writes, poolChanges(changed)),
    deleteOutbox(writes, rungOutboxIds),
  ]);
  const [outboxId] = await Promise.all([outbox, writes.send(tx)]);
  return outboxId;
};

const eventsOf = (run: RunWork): NewEvents => ({
  runId: run.id,
  projectId: run.version.projectId,
  firstSeq: run.nextSeq,
  lastSeq: run.nextSeq + run.changes.length - 1,
  changes: JSON.stringify(run.changes),
});

/** The order in which heartbeats lock these rows, too. */
const byKey = (left: RowWork, right: RowWork): number =>
  (left.run.id < right.run.id ? -1 : left.run.id > right.run.id ? 1 : 0) ||
  left.step - right.step ||
  left.item - right.item;

const writeChanged = (
  tx: Queryable,
  rows: readonly RowWork[],
  leaseMs: number,
): readonly Promise<void>[] => {
  const started: NewStepRun[] = [];
  const succeeded: NewStepRun[] = [];
  const others: NewStepRun[] = [];
  for (const row of rows.toSorted(byKey)) {
    const isStart = row.state === "running" && row.savedState !== "running" && !row.isNewlyReady;
    if (isStart && !row.isCancelRequested) started.push(toWrite(row));
    else if (row.state === "succeeded") succeeded.push(toWrite(row));
    else others.push(toWrite(row));
  }
  return [
    startStepRuns(tx, started, leaseMs),
    succeedStepRuns(tx, succeeded),
    updateStepRuns(tx, others, leaseMs),
  ];
};

const endChange = (run: RunWork): JsonValue => ({
  run: run.state,
  ...(run.error === null ? {} : { error: { code: run.error.code, message: run.error.message } }),
});

const afterState = (run: RunWork) => ({
  state: run.state,
  summaries: run.summaries.map(encodeSummary),
  nextSeq: run.nextSeq + run.changes.length,
  error: run.error,
  cancelError: run.cancelError,
});

/** A row holds its weight while it is queued or running. */
const poolChanges = (
  rows: readonly RowWork[],
): { projectId: string; name: string; delta: number }[] => {
  const deltas = new Map<string, { projectId: string; name: string; delta: number }>();
  for (const row of rows) {
    const sign = Number(holdsPools(row.state)) - Number(holdsPools(row.savedState));
    if (sign === 0) continue;
    for (const { projectId, name, weight } of poolsOf(row)) {
      const key = `${projectId}/${name}`;
      const entry = deltas.get(key) ?? { projectId, name, delta: 0 };
      entry.delta += sign * weight;
      deltas.set(key, entry);
    }
  }
  return [...deltas.values()].filter((entry) => entry.delta !== 0);
};
