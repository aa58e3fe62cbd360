import { METRICS } from "@coppice/core";
import { describe, expect, test } from "vitest";
import { createMetrics } from "./metrics.ts";

describe("metrics", () => {
  test("every series of the catalogue is published with its help and kind", async () => {
    const text = await createMetrics().text();
    for (const [name, entry] of Object.entries(METRICS)) {
      expect(text).toContain(`# HELP ${name} ${entry.help}`);
      expect(text).toContain(`# TYPE ${name} ${entry.kind}`);
    }
    expect(text).toContain("process_cpu_seconds_total");
  });

  test("counters add, gauges hold the last value, histograms fill their buckets", async () => {
    const metrics = createMetrics({ withProcess: false });
    metrics.count("coppice_transitions_total", { to: "running" });
    metrics.count("coppice_transitions_total", { to: "running" }, 4);
    metrics.count("coppice_sweep_bells_total");
    metrics.gauge("coppice_queue_depth", 7, { class: "cpu", state: "ready" });
    metrics.gauge("coppice_queue_depth", 3, { class: "cpu", state: "ready" });
    metrics.observe("coppice_commit_batch_size", 3);
    metrics.observe("coppice_http_seconds", 0.02, { route: "/v1/runs" });
    const text = await metrics.text();
    expect(text).toContain('coppice_transitions_total{to="running"} 5');
    expect(text).toContain("coppice_sweep_bells_total 1");
    expect(text).toContain('coppice_queue_depth{class="cpu",state="ready"} 3');
    expect(text).toContain('coppice_commit_batch_size_bucket{le="2"} 0');
    expect(text).toContain('coppice_commit_batch_size_bucket{le="4"} 1');
    expect(text).toContain('coppice_http_seconds_count{route="/v1/runs"} 1');
    expect(metrics.contentType).toContain("text/plain");
    expect(text).not.toContain("process_cpu");
  });

  test("a cleared gauge loses the series of a class that is gone", async () => {
    const metrics = createMetrics({ withProcess: false });
    metrics.gauge("coppice_queue_depth", 7, { class: "gone", state: "ready" });
    metrics.clearGauge("coppice_queue_depth");
    expect(await metrics.text()).not.toContain("gone");
  });

  test("a label that the catalogue doesn't have is refused", () => {
    const metrics = createMetrics({ withProcess: false });
    const labels = { to: "running", runId: "r1" };
    expect(() => metrics.count("coppice_transitions_total", labels)).toThrow(/runId/);
  });

  test("two registries of one process do not share values", async () => {
    const first = createMetrics();
    const second = createMetrics();
    first.count("coppice_sweep_bells_total");
    expect(await second.text()).toContain("coppice_sweep_bells_total 0");
  });
});
