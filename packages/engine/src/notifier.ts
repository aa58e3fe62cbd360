/**
 * Wakes whoever follows a run: in this process at once, in others by one NOTIFY for all that changed
 * within a few milliseconds.
 *
 * What must stay true: hints only. NOTIFY takes a lock over the whole database, so it is never sent per
 * change and never inside a commit; who misses one looks again after a while.
 */
import { randomUUID } from "node:crypto";

import { isCoppiceError, type Logger, type RunId } from "@coppice/core";
import type { Database } from "@coppice/store";

export interface Notifier {
  notify(runIds: readonly RunId[]): void;
  onRunChanged(listener: (runId: RunId | "*") => void): () => void;
  close(): Promise<void>;
}

const CHANNEL = "coppice_run";
const COALESCE_MS = 20;
/** PostgreSQL's limit is 8,000 bytes; an id takes 37. */
const IDS_MAX = 200;

export const openNotifier = async (db: Database, logger: Logger): Promise<Notifier> => {
  const listeners = new Set<(runId: RunId | "*") => void>();
  let pending = new Set<RunId>();
  let timer: NodeJS.Timeout | undefined;
  const tell = (runId: RunId | "*"): void => {
    for (const listener of listeners) listener(runId);
  };
  // What this process sends comes back to it: its own listeners have heard already.
  const self = randomUUID();
  const subscription = await db.listen(CHANNEL, (payload) => {
    if (payload === undefined) {
      tell("*");
      return;
    }
    const [sender, ...ids] = payload.split(",");
    if (sender !== self) for (const id of ids) tell(id as RunId | "*");
  });
  const send = async (): Promise<void> => {
    timer = undefined;
    const ids = [...pending];
    pending = new Set();
    const payload = [self, ...(ids.length > IDS_MAX ? ["*"] : ids)].join(",");
    await db.query({ name: "notify-runs", text: "select pg_notify($1, $2)" }, [CHANNEL, payload]);
  };
  return {
    notify: (runIds) => {
      for (const id of runIds) {
        pending.add(id);
        tell(id);
      }
      if (pending.size === 0) return;
      timer ??= setTimeout(() => {
        send().catch((error: unknown) => {
          if (!isCoppiceError(error)) logger.warn({ err: error }, "followers could not be woken");
        });
      }, COALESCE_MS);
      timer.unref();
    },
    onRunChanged: (listener) => {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    close: async () => {
      clearTimeout(timer);
      listeners.clear();
      await subscription.close();
    },
  };
};
