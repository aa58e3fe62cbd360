/**
 * Loads a bundle once and finds definitions in it.
 *
 * Packages that the bundle leaves outside (`@coppice/training`, native libraries) resolve from the
 * worker's installation, because the bundle's folder has none.
 */
import { registerHooks } from "node:module";
import { pathToFileURL } from "node:url";

import { CoppiceError } from "@coppice/core";

import type { ChildFailure, ToChild } from "../child-wire.ts";
import { failure } from "./failure.ts";

export interface Definition {
  readonly inputs?: Schema | undefined;
  readonly output?: Schema | undefined;
  run(context: unknown, inputs: unknown): unknown;
}
export interface Schema {
  parseAsync(value: unknown): Promise<unknown>;
}

interface Project {
  readonly pipelines: readonly {
    readonly name: string;
    readonly steps: ReadonlyMap<string, Definition>;
  }[];
}

type Init = Extract<ToChild, { type: "init" }>;

export const loadProject = async (init: Init): Promise<Project> => {
  resolveExternals(init);
  const module = (await import(pathToFileURL(init.entry).href)) as { default?: Project };
  const project = module.default;
  if (typeof project !== "object" || project === null || !Array.isArray(project.pipelines)) {
    throw new CoppiceError("CPC_INDEX_FAILED", {
      detail: "expected the bundle's default export to be a project.",
    });
  }
  return project;
};

export const findDefinition = (project: Project, pipeline: string, stepKey: string): Definition => {
  const found = project.pipelines.find(({ name }) => name === pipeline)?.steps.get(stepKey);
  if (found === undefined) {
    throw new CoppiceError("CPC_STEP_NOT_FOUND", {
      detail: `expected the step "${stepKey}" of the pipeline "${pipeline}" in the bundle.`,
    });
  }
  return found;
};

/** Why a bundle could not be loaded. */
export const failureOfLoading = (error: unknown, { externals }: Init): ChildFailure => {
  const { code, message, stack } = error as { code?: unknown; message?: unknown; stack?: unknown };
  const text = typeof message === "string" ? message : String(error);
  const details = { stack: typeof stack === "string" ? stack : undefined, isRetryable: false };
  const missing = /^Cannot find package '([^']+)'/.exec(text)?.[1];
  if (code === "ERR_MODULE_NOT_FOUND" && missing !== undefined) {
    const wanted = `${missing}@${externals[missing] ?? "*"}`;
    return failure("CPC_EXTERNAL_MISSING", `The worker lacks the package ${wanted}.`, details);
  }
  return failure("CPC_INDEX_FAILED", text, details);
};

const resolveExternals = (init: Init): void => {
  const inside = `${pathToFileURL(init.projectDir).href}/`;
  const from =
    init.externalsFrom === undefined ? import.meta.url : pathToFileURL(init.externalsFrom).href;
  registerHooks({
    resolve: (specifier, context, next) => {
      const isBare = /^[^./]/.test(specifier) && !/^[a-z]+:/.test(specifier);
      if (!isBare || context.parentURL?.startsWith(inside) !== true)
        return next(specifier, context);
      return next(specifier, { ...context, parentURL: from });
    },
  });
};
