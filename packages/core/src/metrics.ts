/**
 * What every room may ask of metrics, and the catalogue of every series we publish.
 *
 * `telemetry` builds the real one; tests take `silentMetrics`. What must stay true: a name is never
 * reused with other labels, base units are in the name, and a label's values are few and ours
 * (states, classes, route patterns), never ids and never a user's text.
 */
interface MetricEntry {
  readonly kind: "counter" | "gauge" | "histogram";
  readonly help: string;
  readonly labels: readonly string[];
  /** Upper bounds of a histogram's buckets. */
  readonly buckets?: readonly number[];
}

const SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];

export const METRICS = {
  coppice_transitions_total: {
    kind: "counter",
    help: "State changes of step runs that were committed, by the new state.",
    labels: ["to"],
  },
  coppice_reconciled_total: {
    kind: "counter",
    help: "Repairs by the reconciler; near zero while everything is well.",
    labels: ["kind"],
  },
  coppice_sweep_bells_total: {
    kind: "counter",
    help: "Bells rung by the sweep instead of the committer; near zero while everything is well.",
    labels: [],
  },
  coppice_oldest_ready_seconds: {
    kind: "gauge",
    help: "How long the oldest ready step run has been waiting.",
    labels: [],
  },
  coppice_queue_depth: {
    kind: "gauge",
    help: "Step runs that wait, by class and state.",
    labels: ["class", "state"],
  },
  coppice_slots: {
    kind: "gauge",
    help: "Slots of the workers that answer, by state (free, busy).",
    labels: ["state"],
  },
  coppice_commit_batch_size: {
    kind: "histogram",
    help: "Events in one commit of the engine.",
    labels: [],
    buckets: [1, 2, 4, 8, 16, 32, 64, 128, 256, 512],
  },
  coppice_commit_seconds: {
    kind: "histogram",
    help: "Duration of one commit of the engine.",
    labels: [],
    buckets: SECONDS,
  },
  coppice_http_requests_total: {
    kind: "counter",
    help: "HTTP requests answered, by route pattern, method and status.",
    labels: ["route", "method", "status"],
  },
  coppice_http_seconds: {
    kind: "histogram",
    help: "Duration of HTTP requests, by route pattern.",
    labels: ["route"],
    buckets: SECONDS,
  },
  coppice_attempts_total: {
    kind: "counter",
    help: "Attempts that ended, by outcome.",
    labels: ["outcome"],
  },
  coppice_exchange_items_total: {
    kind: "counter",
    help: "Items of worker exchanges, by type.",
    labels: ["type"],
  },
} as const satisfies Record<string, MetricEntry>;

export type MetricName = keyof typeof METRICS;
type NameOfKind<Kind extends MetricEntry["kind"]> = {
  [Name in MetricName]: (typeof METRICS)[Name]["kind"] extends Kind ? Name : never;
}[MetricName];
export type CounterName = NameOfKind<"counter">;
export type GaugeName = NameOfKind<"gauge">;
export type HistogramName = NameOfKind<"histogram">;
/** Exactly the labels that the catalogue gives the series. */
export type MetricLabels<Name extends MetricName> = Readonly<
  Record<(typeof METRICS)[Name]["labels"][number], string>
>;

export interface Metrics {
  /** Adds `by` (1 unless told) to a counter. */
  count<Name extends CounterName>(name: Name, labels?: MetricLabels<Name>, by?: number): void;
  /** Records one value in a histogram. */
  observe<Name extends HistogramName>(name: Name, value: number, labels?: MetricLabels<Name>): void;
  /** Sets a gauge. */
  gauge<Name extends GaugeName>(name: Name, value: number, labels?: MetricLabels<Name>): void;
}

const nothing = (): void => undefined;

export const silentMetrics: Metrics = { count: nothing, observe: nothing, gauge: nothing };
