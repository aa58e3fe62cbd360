/** The doorbell of `@coppice/queue` as the supervisor's bell source. */
import type { Logger } from "@coppice/core";
import { listen } from "@coppice/queue";

import type { BellSource } from "./bell-source.ts";
import type { SlotGrant } from "./slots.ts";

export const queueBells = (logger: Logger): BellSource => ({
  listen: async (address, classKeys, handlers) =>
    await listen(address, {
      classKeys,
      logger,
      slots: {
        tryReserve: (classKey) => handlers.tryReserve(classKey),
        onFree: (listener) => handlers.onFree(listener),
      },
      // The listener hands back the very grant that `tryReserve` gave it.
      onBell: async (bell, slot) => await handlers.onBell(bell, slot as SlotGrant),
    }),
});
