/** Bundles, pipelines, pools. A version is what was deployed: code digest and definition together. */
import { createHash } from "node:crypto";
import { Readable } from "node:stream";
import {
  canonicalJson,
  CoppiceError,
  formatId,
  isCoppiceError,
  type JsonValue,
  type PipelineVersionId,
} from "@coppice/core";
import { BUNDLE_BYTES_MAX, type PipelineSummary } from "@coppice/contract";
import { compilePipeline, type PipelineIr } from "@coppice/pipeline";
import {
  deployVersions,
  findVersion,
  hasBundle,
  insertBundle,
  listPipelines,
  listPools,
  listVersions,
  type NewVersion,
  type PipelineRow,
  putPool,
  setBundleManifest,
} from "@coppice/store";
import type { Deps } from "./deps.ts";
import type { Call, Handlers } from "./handler.ts";
import { whole } from "./page.ts";
import { readParamsSchema } from "./params-schema.ts";
import { newId } from "./token.ts";

const bundleError = (error: unknown): unknown => {
  if (!isCoppiceError(error)) return error;
  const detail = error.detail === undefined ? {} : { detail: error.detail };
  if (error.code === "CPC_ARTIFACT_CORRUPT") {
    return new CoppiceError("CPC_BUNDLE_CORRUPT", { ...detail, cause: error });
  }
  if (error.code === "CPC_BODY_TOO_LARGE") {
    return new CoppiceError("CPC_BUNDLE_TOO_LARGE", { ...detail, cause: error });
  }
  return error;
};

const putBundle = async (deps: Deps, call: Call<"bundles.put">) => {
  const { digest } = call.params;
  try {
    const projectId = await call.projectId();
    const { sizeBytes } = await deps.artifacts.put(digest, call.body ?? Readable.from([]), {
      sizeMaxBytes: BUNDLE_BYTES_MAX,
    });
    await insertBundle(deps.db, projectId, digest, sizeBytes);
    return { digest, sizeBytes };
  } catch (error) {
    call.body?.resume();
    throw bundleError(error);
  }
};

const toVersion = (input: unknown): NewVersion => {
  const { ir } = compilePipeline(input);
  readParamsSchema(ir.params);
  const irSha256 = createHash("sha256")
    .update(canonicalJson(ir as unknown as JsonValue))
    .digest("hex");
  return { id: newId<PipelineVersionId>(), name: ir.name, ir, irSha256 };
};

const deploy = async (deps: Deps, call: Call<"pipelines.deploy">) => {
  const { bundleDigest, pipelines, manifest } = call.body;
  const projectId = await call.projectId();
  const versions = pipelines.map(toVersion);
  const names = versions.map(({ name }) => name);
  const twice = names.find((name, index) => names.indexOf(name) !== index);
  if (twice !== undefined) {
    throw new CoppiceError("CPC_DUPLICATE_ID", { detail: `Two pipelines are named ${twice}.` });
  }
  if (!(await hasBundle(deps.db, projectId, bundleDigest))) {
    throw new CoppiceError("CPC_BUNDLE_NOT_FOUND", {
      detail: bundleDigest,
      hint: "Upload it first with PUT /v1/bundles/{digest}.",
    });
  }
  const deployed = await deps.db.transaction(async (tx) => {
    if (manifest !== undefined) await setBundleManifest(tx, projectId, bundleDigest, manifest);
    return await deployVersions(tx, projectId, bundleDigest, versions);
  });
  return { versions: deployed.map((row) => ({ ...row, id: formatId("plv", row.id) })) };
};

const irOf = (row: PipelineRow): PipelineIr => row.ir as PipelineIr;

const viewPipeline = (row: PipelineRow): PipelineSummary => ({
  name: row.name,
  description: irOf(row).description ?? null,
  version: row.version,
  stepCount: irOf(row).steps.length,
  createdAt: row.createdAt.toISOString(),
});

const readPipeline = async (deps: Deps, call: Call<"pipelines.get">) => {
  const { name } = call.params;
  const projectId = await call.projectId();
  const newest = await findVersion(deps.db, projectId, name, null);
  if (newest === undefined) throw new CoppiceError("CPC_PIPELINE_NOT_FOUND", { detail: name });
  const versions = await listVersions(deps.db, projectId, name);
  const { params, steps } = irOf(newest);
  return {
    ...viewPipeline(newest),
    params,
    steps: steps.map(({ key, description }) => ({ key, description: description ?? null })),
    versions: versions.map((row) => ({
      ...row,
      id: formatId("plv", row.id),
      createdAt: row.createdAt.toISOString(),
    })),
  };
};

type CatalogueIds = Extract<
  keyof Handlers,
  `bundles.${string}` | `pipelines.${string}` | `pools.${string}`
>;

export const createCatalogueHandlers = (deps: Deps): Handlers<CatalogueIds> => ({
  "bundles.put": async (call) => await putBundle(deps, call),
  "pipelines.deploy": async (call) => await deploy(deps, call),
  "pipelines.list": async (call) =>
    whole((await listPipelines(deps.db, await call.projectId())).map(viewPipeline)),
  "pipelines.get": async (call) => await readPipeline(deps, call),
  "pools.list": async (call) => whole(await listPools(deps.db, await call.projectId(), null)),
  "pools.get": async (call) => {
    const [pool] = await listPools(deps.db, await call.projectId(), call.params.name);
    if (pool === undefined) throw new CoppiceError("CPC_NOT_FOUND", { detail: call.params.name });
    return pool;
  },
  "pools.put": async (call) =>
    await putPool(deps.db, await call.projectId(), call.params.name, call.body.capacity),
});
