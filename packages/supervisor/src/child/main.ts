/**
 * The process in which users' code runs: one bundle, one attempt at a time.
 *
 * Order matters here: the watchdog first, so that nothing outlives the supervisor; then the seeded
 * generator and the captured output; then the bundle. It holds no credential and no lease: all that
 * it knows of the outside comes along the wire.
 */
import process from "node:process";
import { Worker } from "node:worker_threads";

import type { ToChild } from "../child-wire.ts";
import { AttemptHost } from "./attempt.ts";
import { captureOutput } from "./capture.ts";
import { failureOfLoading, loadProject } from "./project.ts";
import { installSeededRandom } from "./random.ts";
import { ChildWire } from "./wire.ts";

const extension = import.meta.url.endsWith(".ts") ? "ts" : "js";
new Worker(new URL(`./watchdog.${extension}`, import.meta.url), {
  resourceLimits: { maxOldGenerationSizeMb: 16, maxYoungGenerationSizeMb: 4 },
}).unref();

const wire = new ChildWire();
captureOutput((text) => wire.log(text));

let project: Awaited<ReturnType<typeof loadProject>> | undefined;
let projectDir = "";
let current: AttemptHost | undefined;

const onStray = (kind: string) => (error: unknown) => {
  if (current === undefined) {
    wire.log(`${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`);
  } else {
    current.onStray(error, kind);
  }
};
process.on("uncaughtException", onStray("uncaughtException"));
process.on("unhandledRejection", onStray("unhandledRejection"));
// A regular exit would wait for the watchdog's thread, which is blocked in the kernel for good.
(process as unknown as { reallyExit: (code?: number) => void }).reallyExit = (code) => {
  wire.send({ type: "exit", code: code ?? 0 });
  process.kill(process.pid, "SIGKILL");
};
// Signals are the supervisor's business: a Ctrl-C in a terminal must not end attempts that drain.
process.on("SIGINT", () => undefined);
process.on("SIGTERM", () => undefined);

const initialize = async (init: Extract<ToChild, { type: "init" }>): Promise<void> => {
  installSeededRandom(init.bundleDigest);
  projectDir = init.projectDir;
  try {
    project = await loadProject(init);
    wire.send({ type: "ready", rssBytes: process.memoryUsage.rss() });
  } catch (error) {
    wire.send({ type: "unloadable", failure: failureOfLoading(error, init) });
  }
};

const run = async (order: Extract<ToChild, { type: "run" }>): Promise<void> => {
  if (project === undefined) return;
  current = new AttemptHost(order.attempt, wire, projectDir);
  await current.run(project);
  current = undefined;
};

wire.listen((message) => {
  switch (message.type) {
    case "init":
      void initialize(message);
      return;
    case "run":
      void run(message);
      return;
    case "abort":
      current?.abort(message.reason);
      return;
    case "reply":
      current?.onReply(message);
      return;
  }
});
