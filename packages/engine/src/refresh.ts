/**
 * Reads the fleet's load twice a second and admits what waits where there is room: what no commit of
 * this process has seen, such as slots that another process freed.
 */
import type { Logger } from "@coppice/core";
import type { Database } from "@coppice/store";

import type { Capacity } from "./capacity.ts";
import type { EngineEvent, EventResult } from "./events.ts";

const REFRESH_MS = 500;

export interface RefreshOptions {
  readonly db: Database;
  readonly capacity: Capacity;
  readonly logger: Logger;
  readonly commit: (event: EngineEvent) => Promise<EventResult>;
}

export const startRefreshing = async (
  options: RefreshOptions,
): Promise<{ readonly refresh: () => Promise<void>; readonly stop: () => void }> => {
  const { db, capacity, logger, commit } = options;
  const refresh = async (): Promise<void> => {
    await capacity.refresh(db);
    const classIds = capacity
      .loads()
      .filter((load) => load.ready > 0 && capacity.window(load.classId) > 0)
      .map((load) => load.classId);
    if (classIds.length > 0) await commit({ type: "nudge", classIds });
  };
  await capacity.refresh(db);
  let isRefreshing = false;
  const timer = setInterval(() => {
    if (isRefreshing) return;
    isRefreshing = true;
    refresh()
      .catch((error: unknown) => logger.debug({ err: error }, "capacity could not be read"))
      .finally(() => {
        isRefreshing = false;
      });
  }, REFRESH_MS);
  timer.unref();
  return { refresh, stop: () => clearInterval(timer) };
};
