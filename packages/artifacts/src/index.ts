/** Immutable bytes by digest. */
export {
  type ArtifactBody,
  type ArtifactEntry,
  type ArtifactStore,
  type ByteRange,
  isSha256,
  type PutOptions,
  type PutResult,
  requireSha256,
} from "./artifact-store.ts";
export { verifiedBody } from "./body-blocks.ts";
export { openArtifactStore } from "./open-artifact-store.ts";
export type { S3StoreOptions } from "./s3-store.ts";
