/**
 * The life of a step run: from which state it may go to which.
 *
 * What must stay true: nothing leaves a final state. The engine writes no other changes, and the
 * invariant checker holds the event feed against this table.
 */
import type { StepState } from "@coppice/core";

export const TRANSITIONS: Readonly<Record<StepState, readonly StepState[]>> = {
  /** Its rule held, or can't hold any more, its condition was false or wrong, or the run ended. */
  pending: ["ready", "skipped", "upstream_failed", "failed", "cancelled"],
  /** Straight to running in the slot that another attempt's finish offered; failed by timeout. */
  ready: ["queued", "running", "failed", "cancelled"],
  /** Back to ready where the bell found no free slot. */
  queued: ["running", "ready", "failed", "cancelled"],
  /** Back to ready where the worker was lost or gave the attempt back. */
  running: ["succeeded", "failed", "retrying", "ready", "cancelled", "quarantined", "pruned"],
  retrying: ["ready", "cancelled"],
  succeeded: [],
  failed: [],
  upstream_failed: [],
  skipped: [],
  cancelled: [],
  quarantined: [],
  pruned: [],
};

export const canMove = (from: StepState, to: StepState): boolean => TRANSITIONS[from].includes(to);
