/** A user's project indexed, bundled, digested. The format alone is `@coppice/bundle/format`. */
export {
  type BundleOptions,
  bundleProject,
  indexProject,
  type ProjectBundle,
} from "./bundle-project.ts";
export { findProject, type ProjectPlace, requireProject } from "./find-project.ts";
export {
  BUNDLE_ENTRY,
  type BundleManifest,
  bundleManifestSchema,
  digestOf,
  MANIFEST_FILE,
  manifestOf,
  packBundle,
  type PackedBundle,
  readBundle,
  readManifest,
  unpackBundle,
} from "./format.ts";
export type { ProjectIndex } from "./index-cache.ts";
export { type ProjectWatch, watchProject } from "./watch-project.ts";
