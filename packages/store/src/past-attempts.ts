/**
 * How attempts ended, read again: a finish that comes a second time is answered from here.
 */
import type { AttemptOutcome, LeaseToken, RunId, StepRunRef } from "@coppice/core";

import type { Queryable, Row } from "./client.ts";
import type { Granted } from "./step-run-writes.ts";

export interface PastAttempt {
  readonly runId: RunId;
  readonly step: number;
  readonly item: number;
  readonly attempt: number;
  readonly outcome: AttemptOutcome;
  readonly lease: LeaseToken | null;
  readonly granted: Granted | null;
}

const LOAD_ATTEMPTS = {
  name: "load-attempts",
  text: `select a.run_id as "runId", a.step, a.item, a.attempt, a.outcome, a.lease_token as lease, a.granted
         from unnest($1::uuid[], $2::smallint[], $3::int[], $4::smallint[])
           as u(run_id, step, item, attempt)
         join attempt a on a.run_id = u.run_id and a.step = u.step and a.item = u.item
           and a.attempt = u.attempt`,
};

/** Attempts that have ended; for finishes that are sent a second time. */
export const loadAttempts = async (
  tx: Queryable,
  refs: readonly (StepRunRef & { readonly attempt: number })[],
): Promise<PastAttempt[]> =>
  refs.length === 0
    ? []
    : await tx.query<PastAttempt & Row>(LOAD_ATTEMPTS, [
        refs.map((ref) => ref.runId),
        refs.map((ref) => ref.step),
        refs.map((ref) => ref.item),
        refs.map((ref) => ref.attempt),
      ]);
