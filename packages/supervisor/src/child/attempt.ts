/**
 * Runs one attempt inside the child: inputs, parse, `run`, parse, output.
 *
 * An error outside the step's own promise (an unhandled rejection, an exception in a callback)
 * fails the attempt that is going on, and the child is not used again.
 */
import process from "node:process";

import { CoppiceError } from "@coppice/core";

import type { AbortWord, ChildAttempt, ChildResult, ToChild } from "../child-wire.ts";
import { deferred } from "../deadline.ts";
import { openContext } from "./context.ts";
import { failureOfThrown } from "./failure.ts";
import { resolveInputs } from "./inputs.ts";
import { packOutput } from "./output.ts";
import { type Definition, findDefinition, type loadProject, type Schema } from "./project.ts";
import { reseedRandom } from "./random.ts";
import { Requests } from "./requests.ts";
import type { ChildWire } from "./wire.ts";

type Project = Awaited<ReturnType<typeof loadProject>>;

export class AttemptHost {
  readonly #attempt: ChildAttempt;
  readonly #wire: ChildWire;
  readonly #projectDir: string;
  readonly #abort = new AbortController();
  readonly #requests: Requests;
  readonly #strays: string[] = [];
  readonly #stray = deferred<never>();

  constructor(attempt: ChildAttempt, wire: ChildWire, projectDir: string) {
    this.#attempt = attempt;
    this.#wire = wire;
    this.#projectDir = projectDir;
    this.#stray.promise.catch(() => undefined);
    this.#requests = new Requests(attempt.dir, (question) =>
      wire.send({ ...question, serial: attempt.serial }),
    );
  }

  abort(reason: AbortWord): void {
    this.#abort.abort(reason);
  }

  onReply(reply: Extract<ToChild, { type: "reply" }>): void {
    this.#requests.onReply(reply);
  }

  /** An error that nobody awaits. */
  onStray(error: unknown, kind: string): void {
    this.#strays.push(kind);
    this.#stray.reject(error);
  }

  async run(project: Project): Promise<void> {
    const { serial, seed, traceparent } = this.#attempt;
    const before = countResources();
    const cpuBefore = process.cpuUsage();
    setTraceparent(traceparent);
    reseedRandom(seed);
    const result = await this.#settle(project);
    // Handles that are being closed are gone after one turn of the loop.
    let leaks = newResources(before);
    if (leaks.length > 0) {
      await new Promise((resolve) => setImmediate(resolve));
      leaks = newResources(before);
    }
    const { user, system } = process.cpuUsage(cpuBefore);
    this.#wire.send({
      type: "end",
      serial,
      result,
      cpuMs: (user + system) / 1000,
      rssBytes: process.memoryUsage.rss(),
      leaks: [...this.#strays, ...leaks].slice(0, 20),
      hasDir: this.#requests.hasDir,
    });
  }

  async #settle(project: Project): Promise<ChildResult> {
    const { context, revoke } = openContext({
      attempt: this.#attempt,
      projectDir: this.#projectDir,
      signal: this.#abort.signal,
      requests: this.#requests,
      send: (message) => this.#wire.send(message),
      log: (text) => this.#wire.log(text),
    });
    try {
      const { pipeline, stepKey, inputs } = this.#attempt;
      const definition = findDefinition(project, pipeline.name, stepKey);
      const resolved = await resolveInputs(inputs, this.#requests);
      const returned = await Promise.race([
        run(definition, context, resolved),
        this.#stray.promise,
      ]);
      return await packOutput(returned, this.#requests);
    } catch (error) {
      return { type: "failed", failure: failureOfThrown(error) };
    } finally {
      revoke();
    }
  }
}

const run = async (
  definition: Definition,
  context: unknown,
  resolved: Record<string, unknown>,
): Promise<unknown> => {
  const inputs = await parse(definition.inputs, resolved, "CPC_INVALID_INPUT");
  const returned: unknown = await definition.run(context, inputs);
  return await parse(definition.output, returned, "CPC_OUTPUT_INVALID");
};

const parse = async (
  schema: Schema | undefined,
  value: unknown,
  code: "CPC_INVALID_INPUT" | "CPC_OUTPUT_INVALID",
): Promise<unknown> => {
  if (schema === undefined) return value;
  try {
    return await schema.parseAsync(value);
  } catch (error) {
    const issues = (error as { issues?: unknown }).issues;
    if (!Array.isArray(issues)) throw error;
    throw new CoppiceError(code, { detail: describeIssues(issues as readonly Issue[]) });
  }
};

interface Issue {
  readonly path?: readonly PropertyKey[];
  readonly message?: string;
}

const describeIssues = (issues: readonly Issue[]): string =>
  issues
    .slice(0, 10)
    .map(
      ({ path = [], message = "invalid" }) =>
        `$${path.map((p) => `.${String(p)}`).join("")}: ${message}`,
    )
    .join("; ");

const countResources = (): Map<string, number> => {
  const counts = new Map<string, number>();
  for (const name of process.getActiveResourcesInfo())
    counts.set(name, (counts.get(name) ?? 0) + 1);
  return counts;
};

/** Our own immediate writes of the log are no leak of the step's. */
const OURS = new Set(["Immediate", "FSReqCallback", "FSReqPromise", "CloseReq"]);

const newResources = (before: ReadonlyMap<string, number>): string[] =>
  [...countResources()]
    .filter(([name, count]) => !OURS.has(name) && count > (before.get(name) ?? 0))
    .map(([name]) => name);

const setTraceparent = (traceparent: string | undefined): void => {
  // oxlint-disable-next-line no-restricted-properties -- This environment is the step's own.
  const env = process.env;
  if (traceparent === undefined) delete env["TRACEPARENT"];
  else env["TRACEPARENT"] = traceparent;
};
