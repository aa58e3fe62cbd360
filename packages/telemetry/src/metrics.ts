/**
 * The real `Metrics`: prom-client with a registry of its own, built from core's catalogue.
 *
 * What must stay true: nothing is registered globally, so two of these live side by side in one
 * process; every series without labels exists from the start, so a rate has a first value.
 */
import {
  type CounterName,
  type GaugeName,
  type HistogramName,
  type MetricName,
  METRICS,
  type Metrics,
} from "@coppice/core";
import { collectDefaultMetrics, Counter, Gauge, Histogram, Registry } from "prom-client";

export interface MetricsRegistry extends Metrics {
  /** Forgets a gauge's series, so that one whose labels are gone (a class) isn't shown for ever. */
  clearGauge(name: GaugeName): void;
  /** What `/metrics` answers. */
  text(): Promise<string>;
  readonly contentType: string;
}

export interface MetricsOptions {
  /** CPU, memory and event loop of this process as well. Default: true. */
  readonly withProcess?: boolean;
}

type LabelValues = Record<string, string>;

const required = <Handle>(handles: ReadonlyMap<string, Handle>, name: MetricName): Handle => {
  const handle = handles.get(name);
  if (handle === undefined)
    throw new TypeError(`expected a metric of our catalogue. Received: ${name}`);
  return handle;
};

export const createMetrics = (options: MetricsOptions = {}): MetricsRegistry => {
  const registry = new Registry();
  const counters = new Map<string, Counter>();
  const gauges = new Map<string, Gauge>();
  const histograms = new Map<string, Histogram>();
  for (const [name, entry] of Object.entries(METRICS)) {
    const base = { name, help: entry.help, labelNames: [...entry.labels], registers: [registry] };
    if (entry.kind === "counter") counters.set(name, new Counter(base));
    else if (entry.kind === "gauge") gauges.set(name, new Gauge(base));
    else histograms.set(name, new Histogram({ ...base, buckets: [...entry.buckets] }));
  }
  if (options.withProcess ?? true) collectDefaultMetrics({ register: registry });
  return {
    count: (name: CounterName, labels?: LabelValues, by = 1) => {
      required(counters, name).inc(labels ?? {}, by);
    },
    observe: (name: HistogramName, value: number, labels?: LabelValues) => {
      required(histograms, name).observe(labels ?? {}, value);
    },
    gauge: (name: GaugeName, value: number, labels?: LabelValues) => {
      required(gauges, name).set(labels ?? {}, value);
    },
    clearGauge: (name) => {
      required(gauges, name).reset();
    },
    text: () => registry.metrics(),
    contentType: registry.contentType,
  };
};
