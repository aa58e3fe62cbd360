/**
 * Outcomes on disk, for as long as the server has not answered them.
 *
 * What must stay true: a file that `save` has written survives the loss of power; sending it again
 * is harmless, because its lease token fences it; what can't be read is set aside.
 */
import { mkdir, open, readdir, readFile, rename, rm } from "node:fs/promises";
import { join } from "node:path";

import { type WorkItem, workItemSchema } from "@coppice/contract";
import { attemptKey, type Logger, type RunId } from "@coppice/core";

export type FinishItem = Extract<WorkItem, { type: "finish" }>;

export class Outbox {
  readonly #dir: string;
  readonly #logger: Logger;
  #saved = 0;

  constructor(dir: string, logger: Logger) {
    this.#dir = dir;
    this.#logger = logger;
  }

  async save(item: FinishItem): Promise<void> {
    await mkdir(this.#dir, { recursive: true });
    const path = this.#pathOf(item);
    this.#saved += 1;
    const partial = `${path}.${this.#saved}.part`;
    const handle = await open(partial, "w", 0o600);
    try {
      await handle.writeFile(JSON.stringify(item));
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(partial, path);
    await syncFolder(this.#dir);
  }

  async remove(item: FinishItem): Promise<void> {
    await rm(this.#pathOf(item), { force: true });
  }

  /** What an earlier process of this folder could not bring to the server. */
  async list(): Promise<FinishItem[]> {
    const names = await readdir(this.#dir).catch(() => []);
    const items: FinishItem[] = [];
    for (const name of names.filter((entry) => entry.endsWith(".json"))) {
      const path = join(this.#dir, name);
      const item = parseItem(await readFile(path, "utf8"));
      if (item !== undefined) {
        items.push(item);
        continue;
      }
      this.#logger.error({ path }, "a kept outcome can't be read, it is set aside");
      await rename(path, `${path}.unreadable`);
    }
    return items;
  }

  #pathOf(item: FinishItem): string {
    return join(this.#dir, `${attemptKey({ ...item, runId: item.runId as RunId })}.json`);
  }
}

const parseItem = (text: string): FinishItem | undefined => {
  try {
    const item = workItemSchema.parse(JSON.parse(text));
    return item.type === "finish" ? item : undefined;
  } catch {
    return undefined;
  }
};

const syncFolder = async (dir: string): Promise<void> => {
  const handle = await open(dir, "r");
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
};
