/** What the supervisor asks of a doorbell: bells come with a slot in hand, classes may change. */
import type { RegisterReply } from "@coppice/contract";
import type { AttemptRef } from "@coppice/core";

import type { SlotGrant } from "./slots.ts";

export type DoorbellAddress = RegisterReply["doorbell"];

export interface Bell extends AttemptRef {
  readonly classKey: string;
  readonly ring: number;
}

export interface BellHandlers {
  /** At once or not at all. */
  tryReserve(classKey: string): SlotGrant | undefined;
  /** Calls once, the next time that something became free. Returns how to stop listening. */
  onFree(listener: () => void): () => void;
  /**
   * Owns the slot from the call on; without one it waits for a slot for a second.
   * Resolves once the attempt has been started or refused.
   */
  onBell(bell: Bell, grant: SlotGrant | undefined): Promise<"started" | "refused" | "failed">;
}

export interface BellListener {
  setClasses(classKeys: readonly string[]): Promise<void>;
  /** Takes no further bell; never after the deadline. */
  close(deadlineMs: number): Promise<void>;
}

export interface BellSource {
  listen(
    address: DoorbellAddress,
    classKeys: readonly string[],
    handlers: BellHandlers,
  ): Promise<BellListener>;
}
