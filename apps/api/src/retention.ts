/**
 * What is kept for how long: runs 90 days after their end, logs 30 days, uploads that became no
 * artifact a day. Bytes go when no project mentions them and they are older than a day, so that an
 * upload under way loses nothing.
 */
import type { ArtifactStore } from "@coppice/artifacts";
import {
  type Database,
  deleteExpired,
  deleteOldLogs,
  deleteOldRuns,
  deleteOldUploads,
  findUnreferenced,
} from "@coppice/store";

const DAY_MS = 86_400_000;
const DIGESTS_AT_ONCE = 500;

export interface RetentionOptions {
  readonly runsMs: number;
  readonly logsMs: number;
  readonly uploadsMs: number;
}

export const RETENTION: RetentionOptions = {
  runsMs: 90 * DAY_MS,
  logsMs: 30 * DAY_MS,
  uploadsMs: DAY_MS,
};

export interface Collected {
  readonly runs: number;
  readonly logChunks: number;
  readonly uploads: number;
  readonly artifacts: number;
}

const collectBytes = async (
  db: Database,
  artifacts: ArtifactStore,
  ageMs: number,
): Promise<number> => {
  let deleted = 0;
  let batch: string[] = [];
  const flush = async (): Promise<void> => {
    for (const sha256 of await findUnreferenced(db, batch)) {
      await artifacts.delete(sha256);
      deleted += 1;
    }
    batch = [];
  };
  for await (const { sha256, modifiedAtMs } of artifacts.list()) {
    if (Date.now() - modifiedAtMs < ageMs) continue;
    batch.push(sha256);
    if (batch.length >= DIGESTS_AT_ONCE) await flush();
  }
  await flush();
  return deleted;
};

export const collect = async (
  db: Database,
  artifacts: ArtifactStore,
  options: RetentionOptions = RETENTION,
): Promise<Collected> => {
  const runs = await deleteOldRuns(db, options.runsMs);
  const logChunks = await deleteOldLogs(db, options.logsMs);
  const uploads = await deleteOldUploads(db, options.uploadsMs);
  await deleteExpired(db);
  return {
    runs,
    logChunks,
    uploads,
    artifacts: await collectBytes(db, artifacts, options.uploadsMs),
  };
};
