/** From the text of COPPICE_ARTIFACTS to a store. */
import { CoppiceError } from "@coppice/core";
import type { ArtifactStore } from "./artifact-store.ts";
import { openFolderStore } from "./folder-store.ts";
import type { S3StoreOptions } from "./s3-store.ts";

/** Bucket names as S3 allows them. */
const S3_LOCATION = /^s3:\/\/([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:\/(.*))?$/;
/** Parts of a prefix: no surprises in URLs, no "." and "..". */
const S3_PREFIX_PART = /^(?!\.{1,2}$)[A-Za-z0-9!_.*'()-]+$/;

/**
 * @param location a folder, or `s3://bucket/prefix`
 * @throws CPC_INVALID_CONFIG where the location is neither
 */
export const openArtifactStore = async (
  location: string,
  options: S3StoreOptions = {},
): Promise<ArtifactStore> => {
  if (!location.includes("://")) return openFolderStore(location);
  const match = S3_LOCATION.exec(location);
  const [, bucket = "", prefix = ""] = match ?? [];
  const parts = prefix.replace(/\/$/, "").split("/");
  const isPrefixValid = prefix === "" || parts.every((part) => S3_PREFIX_PART.test(part));
  if (match === null || !isPrefixValid) {
    throw new CoppiceError("CPC_INVALID_CONFIG", {
      detail: `expected a folder or s3://bucket/prefix. Received: ${JSON.stringify(location)}`,
    });
  }
  // The client is large and a laptop never needs it.
  const { openS3Store } = await import("./s3-store.ts");
  return openS3Store(bucket, parts.join("/"), options);
};
