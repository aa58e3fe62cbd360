/**
 * The options of `step(key, definition, options)` and their types: which inputs must be given, and
 * of which type, follows from the definition's schema and from the rule.
 */
import type { TriggerRule } from "@coppice/pipeline";
import type { z } from "zod";

import type { Condition } from "./conditions.ts";
import type { ListRef, LooseRef, OutputRef, Ref, RefOf, StrictRef } from "./ref.ts";

/** "30s", "5m", "1h30m" or milliseconds. */
export type Duration = string | number;

/** A step of this pipeline, as `step()` returned it. */
export interface StepHandle<T> {
  readonly key: string;
  readonly output: OutputRef<T>;
}
export interface MappedStepHandle<T> {
  readonly key: string;
  readonly output: ListRef<T>;
}
export type AnyStepHandle = { readonly key: string };

/** Under every rule but `all_success` an output may be missing; `finally` means `always`. */
export type InputMode<Rule, Finally> = Rule extends TriggerRule
  ? Rule extends "all_success"
    ? "strict"
    : "loose"
  : Finally extends true
    ? "loose"
    : "strict";

export type InputSource<T, Mode> = T | (Mode extends "strict" ? StrictRef<T> : LooseRef<T>);
export type InputSources<In extends z.ZodObject, Mode> = {
  readonly [K in keyof z.input<In>]: InputSource<z.input<In>[K], Mode>;
};

/** `with` may be left out where no input is required. */
export type WithOption<In extends z.ZodObject, Mode> =
  Record<never, never> extends InputSources<In, Mode>
    ? { readonly with?: InputSources<In, Mode> }
    : { readonly with: InputSources<In, Mode> };

/** Turns input names that the definition does not have into errors. */
export type OnlyInputs<Given, In extends z.ZodObject> = {
  readonly [K in Exclude<keyof Given, keyof z.input<In>>]: never;
};

export interface MapOptions<Item, LooseItem> {
  /** One step run per entry: a reference to a list, or a list. */
  readonly over: RefOf<readonly Item[], readonly LooseItem[] | undefined> | readonly Item[];
  /** Items running or waiting at a time. */
  readonly concurrency?: number;
  /** A longer list fails the step. */
  readonly itemsMax?: number;
  /** Names the items, where they are not text or numbers themselves. */
  readonly name?: (item: Ref<Item>) => StrictRef<string | number>;
}

export interface RetryOptions {
  /** Attempts that may fail, the first included. */
  readonly attempts?: number;
  /** Attempts that may be lost with their worker. */
  readonly lost?: number;
  readonly backoff?: Duration;
  readonly factor?: number;
  readonly backoffMax?: Duration;
  /** The delay is spread over ± this share of itself. */
  readonly jitter?: number;
}

export interface TimeoutOptions {
  /** From ready to running. */
  readonly queued?: Duration;
  /** One attempt. */
  readonly run?: Duration;
  /** Longest silence of the code: no log, metric, progress or heartbeat. */
  readonly heartbeat?: Duration;
  /** From the abort signal to the kill. */
  readonly grace?: Duration;
}

export interface StepOptions<Rule extends TriggerRule | undefined, Finally extends boolean> {
  readonly description?: string;
  /** Steps that must come before this one although it takes nothing from them. */
  readonly after?: readonly AnyStepHandle[];
  readonly rule?: Rule;
  readonly when?: Condition;
  /** Runs once all ordinary steps are final; its rule is `always` unless it names another. */
  readonly finally?: Finally;
  readonly resources?: {
    readonly slots?: number;
    readonly gpu?: number;
    readonly labels?: Readonly<Record<string, string>>;
  };
  /** Named counters of the project: names, or names with the weight taken. */
  readonly pools?: readonly string[] | Readonly<Record<string, number>>;
  readonly priority?: number;
  readonly retry?: RetryOptions;
  readonly timeouts?: TimeoutOptions;
  readonly isolation?: "reuse" | "fresh";
  readonly exclusive?: boolean;
  readonly memoryMb?: number;
  /** Environment variables that the step asks its worker for. */
  readonly env?: readonly string[];
}
