/**
 * Tells when a project's files change, for `coppice dev`. One non-recursive watch per folder, so
 * that node_modules, build outputs and hidden folders cost nothing.
 */
import { type FSWatcher, watch } from "node:fs";
import { readdir } from "node:fs/promises";
import { join } from "node:path";

export interface ProjectWatch {
  close(): void;
}

const QUIET_MS = 60;
const FOLDERS_MAX = 2000;
const isIgnored = (name: string): boolean =>
  name.startsWith(".") || name === "node_modules" || name === "dist" || name.endsWith("~");

const listFolders = async (root: string): Promise<readonly string[]> => {
  const found = [root];
  for (let index = 0; index < found.length && found.length < FOLDERS_MAX; index += 1) {
    const dir = found[index] ?? root;
    const entries = await readdir(dir, { withFileTypes: true }).catch(() => []);
    for (const entry of entries) {
      if (entry.isDirectory() && !isIgnored(entry.name)) found.push(join(dir, entry.name));
    }
  }
  return found;
};

/** Calls back once per burst of changes; never for what a build of ours writes. */
export const watchProject = async (dir: string, onChange: () => void): Promise<ProjectWatch> => {
  const watchers = new Map<string, FSWatcher>();
  let timer: NodeJS.Timeout | undefined;
  let isClosed = false;

  const rescan = async (): Promise<void> => {
    const folders = new Set(await listFolders(dir));
    if (isClosed) return;
    for (const [folder, watcher] of watchers) {
      if (folders.has(folder)) continue;
      watcher.close();
      watchers.delete(folder);
    }
    for (const folder of folders) {
      if (watchers.has(folder)) continue;
      const watcher = watch(folder, { persistent: false }, (_event, name) => {
        if (name === null || !isIgnored(name)) settle();
      });
      // The folder went away between listing and watching: the next scan drops it.
      watcher.on("error", () => watcher.close());
      watchers.set(folder, watcher);
    }
  };
  const tell = async (): Promise<void> => {
    await rescan();
    if (!isClosed) onChange();
  };
  const settle = (): void => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      void tell();
    }, QUIET_MS);
  };

  await rescan();
  return {
    close: () => {
      isClosed = true;
      clearTimeout(timer);
      for (const watcher of watchers.values()) watcher.close();
      watchers.clear();
    },
  };
};
