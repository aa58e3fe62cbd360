/** Brings a bundle and its pipelines to the server, where they are not there already. */
import type { ProjectBundle } from "@coppice/bundle";
import type { Client } from "@coppice/contract";
import { isCoppiceError } from "@coppice/core";

export interface Deployed {
  readonly digest: string;
  readonly sizeBytes: number;
  /** False: the server has versions with this code already, and nothing was sent. */
  readonly isNew: boolean;
  readonly versions: readonly { readonly name: string; readonly version: number }[];
}

/** The version on the server whose code is this bundle's; not always the newest one. */
const knownVersion = async (
  client: Client,
  name: string,
  digest: string,
): Promise<number | undefined> => {
  try {
    const { versions } = await client.pipelines.get({ params: { name } });
    return versions.find(({ bundleDigest }) => bundleDigest === digest)?.version;
  } catch (error) {
    if (isCoppiceError(error) && error.code === "CPC_PIPELINE_NOT_FOUND") return undefined;
    throw error;
  }
};

export const deployBundle = async (client: Client, bundle: ProjectBundle): Promise<Deployed> => {
  const { digest, bytes, manifest } = bundle;
  const sizeBytes = bytes.byteLength;
  const known = await Promise.all(
    manifest.pipelines.map(async ({ name }) => ({
      name,
      version: await knownVersion(client, name, digest),
    })),
  );
  const versions = known.flatMap(({ name, version }) =>
    version === undefined ? [] : [{ name, version }],
  );
  if (versions.length === known.length) return { digest, sizeBytes, isNew: false, versions };
  await client.bundles.put({ params: { digest }, body: new Uint8Array(bytes) });
  const deployed = await client.pipelines.deploy({
    body: { bundleDigest: digest, pipelines: [...manifest.pipelines] },
  });
  return {
    digest,
    sizeBytes,
    isNew: true,
    versions: deployed.versions.map(({ name, version }) => ({ name, version })),
  };
};
