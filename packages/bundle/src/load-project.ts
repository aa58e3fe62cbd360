/**
 * Loads a built project in a process of its own and brings back what it defines.
 *
 * What must stay true: no user code runs in the caller's process; whatever that code does, an
 * answer comes within the deadline; errors name the project's own files and lines.
 */
import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { mkdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

import { CoppiceError, formatDuration, isErrorCode } from "@coppice/core";
import { z } from "zod";

import { BUNDLE_MAP, type BuiltCode } from "./build-code.ts";
import { BUNDLE_ENTRY } from "./format.ts";
import {
  indexKey,
  type ProjectIndex,
  projectIndexSchema,
  readIndexCache,
  writeIndexCache,
} from "./index-cache.ts";

export interface LoadOptions {
  readonly conditions?: readonly string[];
  /** The code has this long to load; nothing in it should take time at import. */
  readonly deadlineMs?: number;
}

const DEADLINE_MS = 20_000;
const OUTPUT_CHARS_MAX = 4000;

const errorSchema = z.object({
  name: z.string().optional(),
  code: z.unknown().optional(),
  message: z.string(),
  stack: z.string().optional(),
  detail: z.string().optional(),
  data: z.record(z.string(), z.unknown()).optional(),
  hint: z.string().optional(),
});
const answerSchema = z.discriminatedUnion("type", [
  projectIndexSchema.extend({ type: z.literal("project") }),
  z.object({ type: z.literal("notAProject") }),
  z.object({ type: z.literal("error"), error: errorSchema }),
]);

// Beside the compiled module lies .js, beside the source .ts: Node runs both.
const CHILD = fileURLToPath(
  new URL(`./index-child.${import.meta.url.endsWith(".ts") ? "ts" : "js"}`, import.meta.url),
);

/** First line of the stack in the project's own code: `src/steps/a.ts:12:3`. */
const placeOf = (stack: string | undefined): string | undefined =>
  stack
    ?.split("\n")
    .filter((line) => /^\s+at /.test(line) && !/node_modules\/|node:|index-child/.test(line))
    .map((line) => /\(?([^()\s]+:\d+:\d+)\)?$/.exec(line)?.[1])
    .find((place) => place !== undefined && !place.startsWith("/"));

const toIndexError = (error: z.infer<typeof errorSchema>): CoppiceError => {
  const place = placeOf(error.stack);
  if (isErrorCode(error.code)) {
    const detail = error.detail ?? error.message;
    return new CoppiceError(error.code, {
      detail:
        place === undefined || error.code === "CPC_DUPLICATE_ID" ? detail : `${place}: ${detail}`,
      data: { ...error.data, ...(place === undefined ? {} : { place }) },
      ...(error.hint === undefined ? {} : { hint: error.hint }),
    });
  }
  const missing = /^Cannot find (?:package|module) '([^'./][^']*)'/.exec(error.message)?.[1];
  return new CoppiceError("CPC_INDEX_FAILED", {
    detail: `${place === undefined ? "" : `${place}: `}${error.name ?? "Error"}: ${error.message}`,
    data: { ...(place === undefined ? {} : { place }), stack: error.stack },
    ...(missing === undefined ? {} : { hint: `Install it: npm install ${missing}` }),
  });
};

/** Runs the child to its end; what it printed is kept for the case that it says nothing else. */
const runChild = (file: string, options: LoadOptions, deadlineMs: number) =>
  new Promise<{ answer: unknown; printed: string; ended: string }>((resolve, reject) => {
    const child = spawn(
      process.execPath,
      [
        "--enable-source-maps",
        "--disable-warning=ExperimentalWarning",
        ...(options.conditions ?? []).map((condition) => `--conditions=${condition}`),
        CHILD,
        file,
      ],
      { stdio: ["ignore", "pipe", "pipe", "ipc"], serialization: "advanced" },
    );
    let answer: unknown;
    let printed = "";
    let isLate = false;
    const timer = setTimeout(() => {
      isLate = true;
      child.kill("SIGKILL");
    }, deadlineMs);
    const keep = (chunk: Buffer): void => {
      printed = (printed + chunk.toString("utf8")).slice(-OUTPUT_CHARS_MAX);
    };
    child.stdout?.on("data", keep);
    child.stderr?.on("data", keep);
    child.on("message", (message) => {
      answer = message;
    });
    child.on("error", (cause) => {
      clearTimeout(timer);
      reject(
        new CoppiceError("CPC_INDEX_FAILED", { detail: "no process could be started", cause }),
      );
    });
    child.on("close", (code, signal) => {
      clearTimeout(timer);
      const ended = isLate
        ? `it took longer than ${formatDuration(deadlineMs)}: something runs or waits at import`
        : `its process ended with ${signal ?? `code ${code ?? "?"}`} before it was loaded`;
      resolve({ answer, printed, ended });
    });
  });

/** In a process of its own, inside the project, where the packages left outside are found. */
const loadAfresh = async (
  dir: string,
  built: BuiltCode,
  options: LoadOptions,
): Promise<ProjectIndex> => {
  const folder = join(dir, ".coppice", "build", randomUUID());
  await mkdir(folder, { recursive: true });
  try {
    const file = join(folder, BUNDLE_ENTRY);
    await writeFile(file, built.code);
    await writeFile(join(folder, BUNDLE_MAP), built.map);
    const deadlineMs = options.deadlineMs ?? DEADLINE_MS;
    const { answer, printed, ended } = await runChild(file, options, deadlineMs);
    const inProject = (text: string): string =>
      text.replaceAll(`file://${folder}/`, "").replaceAll(`${folder}/`, "");
    if (answer === undefined) {
      const rest = inProject(printed).trim();
      const detail = rest === "" ? ended : `${ended}\n${rest}`;
      throw new CoppiceError("CPC_INDEX_FAILED", { detail });
    }
    return toIndex(JSON.parse(inProject(JSON.stringify(answer))));
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
};

const toIndex = (answer: unknown): ProjectIndex => {
  const parsed = answerSchema.safeParse(answer);
  if (!parsed.success) {
    throw new CoppiceError("CPC_INDEX_FAILED", { detail: z.prettifyError(parsed.error) });
  }
  if (parsed.data.type === "error") throw toIndexError(parsed.data.error);
  if (parsed.data.type === "notAProject") {
    throw new CoppiceError("CPC_INDEX_FAILED", {
      detail: "expected coppice.config's default export to be what defineProject(…) returns",
    });
  }
  const { name, files, pipelines } = parsed.data;
  return { name, files, pipelines };
};

/**
 * @param externals the installed versions of the packages that the code leaves outside
 * @throws CPC_INDEX_FAILED where the code can't be loaded, and whatever Coppice error its
 * definitions throw (CPC_DUPLICATE_ID, CPC_PIPELINE_INVALID, …)
 */
export const loadProject = async (
  dir: string,
  built: BuiltCode,
  externals: Readonly<Record<string, string>>,
  options: LoadOptions = {},
): Promise<ProjectIndex> => {
  const key = indexKey(built.code, externals);
  const known = await readIndexCache(dir, key);
  if (known !== undefined) return known;
  const index = await loadAfresh(dir, built, options);
  await writeIndexCache(dir, key, index);
  return index;
};
