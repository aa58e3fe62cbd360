/**
 * What may happen to runs: the engine's events, and what each is answered.
 *
 * Expected refusals are values, never exceptions: a batch goes on without the event that was refused.
 */
import type {
  AttemptRef,
  CoppiceError,
  ErrorRecord,
  LeaseToken,
  RunId,
  StepRunRef,
  WorkerId,
} from "@coppice/core";
import type { Outcome, Usage } from "@coppice/contract";
import type { NewRun } from "@coppice/store";

import type { VersionFacts } from "./facts.ts";

export interface SubmitEvent {
  readonly type: "submit";
  readonly run: NewRun;
  readonly version: VersionFacts;
  readonly params: unknown;
  readonly idempotency?: {
    readonly key: string;
    readonly requestSha256: Uint8Array;
    readonly status: number;
    readonly response: unknown;
  };
}

export interface StartEvent {
  readonly type: "start";
  readonly ref: AttemptRef;
  readonly lease: LeaseToken;
  readonly workerId: WorkerId;
}

export interface NoSlotEvent {
  readonly type: "noSlot";
  readonly ref: AttemptRef;
  readonly ring: number;
}

export interface FinishEvent {
  readonly type: "finish";
  readonly ref: AttemptRef;
  readonly lease: LeaseToken;
  readonly workerId: WorkerId;
  readonly outcome: Outcome;
  readonly usage?: Usage;
  readonly offer?: { readonly lease: LeaseToken; readonly gpus: number };
}

/** From the reconciler and the timers. */
export interface TimerEvent {
  readonly type: "lost" | "due" | "ringAgain";
  readonly ref: AttemptRef;
  /** Of `ringAgain`: the ring that was silent; a newer one has its own time to be heard. */
  readonly ring?: number;
}

export interface CancelRunEvent {
  readonly type: "cancelRun";
  readonly runId: RunId;
  readonly error: ErrorRecord;
}

export interface CancelStepEvent {
  readonly type: "cancelStep";
  readonly runId: RunId;
  readonly step: number;
  /** Undefined: all items. */
  readonly item?: number;
  readonly error: ErrorRecord;
}

/** Plans a run again, or only admits to classes. */
export interface NudgeEvent {
  readonly type: "nudge";
  readonly runId?: RunId;
  readonly classIds: readonly number[];
}

export type EngineEvent =
  | SubmitEvent
  | StartEvent
  | NoSlotEvent
  | FinishEvent
  | TimerEvent
  | CancelRunEvent
  | CancelStepEvent
  | NudgeEvent;

/** An attempt that has begun; what the worker needs is put together after the commit. */
export interface Begun extends StepRunRef {
  readonly attempt: number;
  readonly lease: LeaseToken;
  readonly version: VersionFacts;
  readonly name: string | null;
  readonly checkpoint: string | null;
}

export type EventResult =
  | { readonly type: "done" }
  /** The run exists now, or did before: `response` is what was answered then. */
  | { readonly type: "submitted"; readonly response?: unknown; readonly isReplay: boolean }
  | { readonly type: "started"; readonly begun: Begun }
  | { readonly type: "accepted"; readonly next?: Begun }
  | { readonly type: "superseded" }
  | { readonly type: "refused"; readonly error: CoppiceError };

/** The run whose lane an event belongs to. */
export const runOf = (event: EngineEvent): RunId | undefined => {
  switch (event.type) {
    case "submit":
      return event.run.id;
    case "cancelRun":
    case "cancelStep":
    case "nudge":
      return event.runId;
    default:
      return event.ref.runId;
  }
};
