/** The default export of `coppice.config.ts`: everything that a project has. */
import { CoppiceError } from "@coppice/core";

import { siteOf } from "./definition-site.ts";
import type { PipelineDefinition } from "./define-pipeline.ts";

/** Tells a project's definition from any other default export, across copies of this module. */
export const PROJECT_MARK = "coppice.project.1";

export interface ProjectSpec {
  /** Lower case, digits and hyphens. */
  readonly name: string;
  readonly pipelines: readonly PipelineDefinition[];
  /** Globs of data files that travel with the code, read at `ctx.projectDir`. */
  readonly files?: readonly string[];
}

export interface ProjectDefinition {
  readonly mark: typeof PROJECT_MARK;
  readonly name: string;
  readonly pipelines: readonly PipelineDefinition[];
  readonly files: readonly string[];
}

/** @throws CPC_DUPLICATE_ID where two pipelines share a name, CPC_INVALID_INPUT for a bad name */
export const defineProject = (spec: ProjectSpec): ProjectDefinition => {
  if (!/^[a-z][a-z0-9-]{0,62}$/.test(spec.name)) {
    throw new CoppiceError("CPC_INVALID_INPUT", {
      detail: `expected a name such as late-flights. Received: ${JSON.stringify(spec.name)}`,
    });
  }
  const byName = new Map<string, PipelineDefinition>();
  for (const pipeline of spec.pipelines) {
    const earlier = byName.get(pipeline.name);
    if (earlier !== undefined) {
      throw new CoppiceError("CPC_DUPLICATE_ID", {
        detail:
          `two pipelines are named "${pipeline.name}": ` +
          `${siteOf(earlier)} and ${siteOf(pipeline)}`,
        data: { pipeline: pipeline.name },
      });
    }
    byName.set(pipeline.name, pipeline);
  }
  return {
    mark: PROJECT_MARK,
    name: spec.name,
    pipelines: [...spec.pipelines],
    files: [...(spec.files ?? [])],
  };
};
