/**
 * Runs a pipeline's steps here, one after another, without a server: for tests and for
 * `measure.ts`. Values pass through JSON and the steps' schemas, as they do between a worker and
 * its child.
 */
import { createHash } from "node:crypto";
import { copyFile, mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { ArtifactRef, PipelineDefinition, StepContext } from "@coppice/sdk";

type Source = PipelineDefinition["ir"]["steps"][number]["inputs"][string];

export interface InProcessResult {
  /** By step's key; of a mapped step the list of its items' outputs. */
  readonly outputs: Readonly<Record<string, unknown>>;
  readonly tookMs: Readonly<Record<string, number>>;
  readonly metrics: readonly { step: string; key: string; value: number; at: number | undefined }[];
  readArtifact(ref: ArtifactRef): Promise<Uint8Array>;
  close(): Promise<void>;
}

/** A field of a list of items' outputs is the list of that field of every item. */
const follow = (value: unknown, path: readonly string[]): unknown => {
  const [key, ...rest] = path;
  if (key === undefined) return value;
  if (Array.isArray(value) && !/^\d+$/.test(key)) return value.map((item) => follow(item, path));
  return follow((value as Record<string, unknown> | undefined)?.[key], rest);
};

export const runInProcess = async (
  pipeline: PipelineDefinition,
  options: {
    readonly projectDir: string;
    readonly params?: Record<string, unknown>;
    readonly signal?: AbortSignal;
  },
): Promise<InProcessResult> => {
  const dir = await mkdtemp(join(tmpdir(), "coppice-quickstart-"));
  const params: unknown = pipeline.params.parse(options.params ?? {});
  const outputs: Record<string, unknown> = {};
  const tookMs: Record<string, number> = {};
  const metrics: InProcessResult["metrics"][number][] = [];
  const pathOf = (ref: ArtifactRef): string => join(dir, ref.$artifact.sha256);
  const ignore = (): void => undefined;

  const contextOf = async (key: string, item: number): Promise<StepContext> => {
    const stepDir = join(dir, `${key}-${item}`);
    await mkdir(stepDir, { recursive: true });
    return {
      run: { id: "run", pipeline: pipeline.name, version: 1 },
      step: { key, item, itemName: undefined },
      attempt: 1,
      signal: options.signal ?? new AbortController().signal,
      seed: `${key} ${item}`,
      params: params as StepContext["params"],
      dir: stepDir,
      projectDir: options.projectDir,
      log: { debug: ignore, info: ignore, warn: ignore, error: ignore },
      artifacts: {
        put: async (name, body, { kind = "file", metadata = {} } = {}) => {
          const isFile = typeof body === "object" && "file" in body;
          const bytes = isFile ? await readFile(body.file) : (body as Uint8Array);
          const sha256 = createHash("sha256").update(bytes).digest("hex");
          const ref = { $artifact: { sha256, sizeBytes: bytes.length, name, kind, metadata } };
          await writeFile(pathOf(ref), bytes);
          return ref;
        },
        get: (ref) => readFile(pathOf(ref)),
        file: async (ref) => {
          const path = join(stepDir, ref.$artifact.name);
          await copyFile(pathOf(ref), path);
          return path;
        },
      },
      checkpoint: { save: async () => undefined, load: async () => undefined },
      metric: (name, value, at) => metrics.push({ step: key, key: name, value, at }),
      progress: ignore,
      heartbeat: ignore,
      env: () => undefined,
    };
  };

  const resolve = (source: Source, item: unknown): unknown => {
    switch (source.from) {
      case "literal":
        return source.value;
      case "param":
        return follow(params, source.path);
      case "output":
        return follow(outputs[source.step], source.path);
      case "item":
        return follow(item, source.path);
      case "run":
        return source.field === "id" ? "run" : "succeeded";
    }
  };

  const close = () => rm(dir, { recursive: true, force: true });
  const runItem = async (index: number, key: string, item: unknown): Promise<unknown> => {
    const step = pipeline.ir.steps.find((candidate) => candidate.key === key);
    const definition = pipeline.steps.get(key);
    if (step === undefined || definition === undefined) throw new Error(`no step ${key}`);
    const values = Object.entries(step.inputs).map(([name, from]) => [name, resolve(from, item)]);
    const inputs = definition.inputs.parse(JSON.parse(JSON.stringify(Object.fromEntries(values))));
    const output = await definition.run(await contextOf(key, index), inputs);
    return JSON.parse(JSON.stringify(definition.output.parse(output)));
  };

  try {
    for (const { key, map } of pipeline.ir.steps) {
      const startedMs = performance.now();
      if (map === undefined) {
        outputs[key] = await runItem(0, key, undefined);
      } else {
        const list: unknown[] = [];
        for (const item of resolve(map.over, undefined) as unknown[]) {
          list.push(await runItem(list.length, key, item));
        }
        outputs[key] = list;
      }
      tookMs[key] = performance.now() - startedMs;
    }
  } catch (error) {
    await close();
    throw error;
  }
  return { outputs, tookMs, metrics, readArtifact: (ref) => readFile(pathOf(ref)), close };
};
