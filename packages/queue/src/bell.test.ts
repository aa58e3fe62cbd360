import { randomUUID } from "node:crypto";
import { requireId } from "@coppice/core";
import { describe, expect, it } from "vitest";
import { type Bell, bellJobId, parseBell, toBellJob } from "./bell.ts";

const bell: Bell = {
  classKey: "cpu",
  runId: requireId("run", randomUUID()),
  step: 3,
  item: 999,
  attempt: 2,
  ring: 4,
  priority: 0,
};

describe("a bell as a job", () => {
  it("comes back as it went, at every priority", () => {
    for (let priority = -100; priority <= 100; priority += 1) {
      const job = toBellJob({ ...bell, priority }, {});
      expect(parseBell("cpu", job.data, job.opts.priority)).toEqual({ ...bell, priority });
    }
  });

  it("never has BullMQ's priority 0, which would overtake all others", () => {
    const priorities = [-1000, -100, 0, 100, 1000].map(
      (priority) => toBellJob({ ...bell, priority }, {}).opts.priority,
    );
    expect(priorities).toEqual([201, 201, 101, 1, 1]);
  });

  it("is named by its attempt and its ring", () => {
    expect(bellJobId(bell)).toBe(`${bell.runId}-3-999-a2-r4`);
    expect(toBellJob(bell, {}).opts.jobId).toBe(bellJobId(bell));
  });

  it.each([
    ["another version", { v: 2 }],
    ["a run that is no UUID", { s: "../../etc" }],
    ["attempt 0", { a: 0 }],
    ["a broken step", { i: 1.5 }],
    ["a missing item", { m: undefined }],
  ])("is not read from %s", (_what, fields) => {
    const { data } = toBellJob(bell, {});
    expect(parseBell("cpu", { ...data, ...fields }, 101)).toBeUndefined();
  });
});
