/** A supervisor with real children against the stub API, and the bundle that tests run. */
/// <reference lib="esnext.disposable" />
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { packBundle, unpackBundle } from "@coppice/bundle/format";
import type { Assignment } from "@coppice/contract";
import type { Logger, RunId } from "@coppice/core";

import {
  type BellHandlers,
  type BellSource,
  startSupervisor,
  type Supervisor,
  type SupervisorOptions,
} from "@coppice/supervisor";

import { type AssignmentInput, type Finish, StubApi, type StubApiOptions } from "./stub-api.ts";

export const bundleOf = (code: string, files: Record<string, string> = {}): Uint8Array => {
  const manifest = {
    protocol: 1,
    project: "demo",
    entry: "bundle.mjs",
    pipelines: [],
    externals: {},
    files: Object.keys(files),
    sources: {},
    node: 24,
  };
  const texts = { ...files, "bundle.mjs": code, "manifest.json": JSON.stringify(manifest) };
  return packBundle(new Map(Object.entries(texts).map(([path, text]) => [path, Buffer.from(text)])))
    .bytes;
};

/** A project of one pipeline `main` from the text of an object of functions `(ctx, inputs)`. */
export const projectOf = (steps: string, head = ""): Uint8Array =>
  bundleOf(`${head}
const steps = ${steps};
export default { pipelines: [{ name: "main", steps: new Map(
  Object.entries(steps).map(([key, run]) => [key, { run }])) }] };
`);

export interface TestBells extends BellSource {
  readonly classKeys: readonly string[];
  ring(assignment: Assignment, options?: { classKey?: string; ring?: number }): Promise<string>;
  readonly isClosed: boolean;
}

export const testBells = (): TestBells => {
  let handlers: BellHandlers | undefined;
  let classKeys: readonly string[] = [];
  let isClosed = false;
  return {
    get classKeys() {
      return classKeys;
    },
    get isClosed() {
      return isClosed;
    },
    listen: async (_address, keys, given) => {
      handlers = given;
      classKeys = keys;
      return {
        setClasses: async (next) => {
          classKeys = next;
        },
        close: async () => {
          isClosed = true;
        },
      };
    },
    ring: async (assignment, { classKey = "cpu", ring = 0 } = {}) => {
      const { runId, step, item, attempt } = assignment;
      const bell = { runId: runId as RunId, step, item, attempt, classKey, ring };
      return (await handlers?.onBell(bell, undefined)) ?? "nobody listens";
    },
  };
};

export interface Harness extends AsyncDisposable {
  readonly api: StubApi;
  readonly bells: TestBells;
  readonly supervisor: Supervisor;
  readonly dir: string;
  readonly warnings: Record<string, unknown>[];
  /** Adds an attempt, rings its bell, waits for its finish. */
  run(input: AssignmentInput): Promise<Finish>;
}

export interface HarnessOptions extends Partial<SupervisorOptions> {
  readonly bundle: Uint8Array;
  readonly stub?: StubApiOptions;
}

const recordingLogger = (warnings: Record<string, unknown>[]): Logger => {
  const logger: Logger = {
    debug: () => undefined,
    info: () => undefined,
    warn: (fields, message) => warnings.push({ ...fields, message }),
    error: (fields, message) => warnings.push({ ...fields, message }),
    child: () => logger,
  };
  return logger;
};

export const startHarness = async ({
  bundle,
  stub,
  ...options
}: HarnessOptions): Promise<Harness> => {
  const api = await new StubApi(stub).open();
  api.addBundle(bundle);
  const bells = testBells();
  const dir = options.dir ?? (await mkdtemp(join(tmpdir(), "coppice-supervisor-")));
  const warnings: Record<string, unknown>[] = [];
  const supervisor = await startSupervisor({
    api: { server: api.url, token: "token" },
    bells,
    name: "test",
    slots: 2,
    dir,
    unpackBundle,
    devices: [],
    hostEnv: { PATH: process.env["PATH"] },
    logger: recordingLogger(warnings),
    ...options,
  });
  return {
    api,
    bells,
    supervisor,
    dir,
    warnings,
    run: async (input) => {
      const { assignment, finished } = api.add(input);
      await bells.ring(assignment);
      return await finished;
    },
    [Symbol.asyncDispose]: async () => {
      await supervisor.kill();
      await api.close();
      await rm(dir, { recursive: true, force: true });
    },
  };
};
