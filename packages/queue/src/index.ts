/** The doorbell: "attempt N of this step run may start", over BullMQ on Redis or PostgreSQL. */
export { doorbellAclRules } from "./acl.ts";
export {
  DEFAULT_PREFIX,
  describeAddress,
  DoorbellAddress,
  MAX_CLASSES,
  queueName,
} from "./address.ts";
export { type BareOptions, type BareResult, measureBareQueue } from "./bare.ts";
export { type Bell, type BellAnswer, bellJobId } from "./bell.ts";
export { type Board, type BoardOptions, openBoard } from "./board.ts";
export type { OnBell } from "./class-listener.ts";
export {
  type ClassDepth,
  type Doorbell,
  type DoorbellOptions,
  openDoorbell,
} from "./doorbell.ts";
export { listen, type Listener, type ListenOptions } from "./listener.ts";
export { migrateDoorbell } from "./open-backend.ts";
export { createSlots, reserveSlot, type Slot, type SlotGate, type Slots } from "./slots.ts";
export { openWorkerAddress, WORKER_USER, type WorkerAddress } from "./worker-address.ts";
