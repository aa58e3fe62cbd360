/** Folders for one test, under the test run's own folder, which goes when the run ends. */
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

export interface TempDir extends AsyncDisposable {
  readonly path: string;
  remove(): Promise<void>;
}

export const tempDir = async (name = "dir"): Promise<TempDir> => {
  const base = process.env["COPPICE_TEST_DIR"] ?? tmpdir();
  await mkdir(base, { recursive: true });
  const path = await mkdtemp(join(base, `coppice-${name}-`));
  const remove = async (): Promise<void> => rm(path, { recursive: true, force: true });
  return { path, remove, [Symbol.asyncDispose]: remove };
};
