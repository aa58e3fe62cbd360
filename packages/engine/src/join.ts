/**
 * All outputs of a mapped step, in order, a page at a time: however many there are, only a page is held.
 */
import type { JsonValue, RunId } from "@coppice/core";
import { locate } from "@coppice/pipeline";
import { type Database, loadOutputsPage } from "@coppice/store";

const PAGE_ITEMS = 500;

export async function* streamJoin(
  db: Database,
  runId: RunId,
  step: number,
  path: readonly string[],
): AsyncGenerator<JsonValue> {
  let next = 0;
  for (;;) {
    const page = await loadOutputsPage(db, runId, step, next, PAGE_ITEMS);
    for (const row of page) {
      if (row.state !== "succeeded") {
        yield null;
        continue;
      }
      const located = locate(row.output ?? undefined, path);
      if (located.kind === "value") yield located.value;
      else yield located.kind === "spilled" ? { $spilled: { ...located.spilled } } : null;
    }
    const last = page.at(-1);
    if (last === undefined || page.length < PAGE_ITEMS) return;
    next = last.item + 1;
  }
}
