/** A worker's inside: slots and devices, children, the wire to the server. */
export { ApiClient, type ApiClientOptions } from "./api-client.ts";
export type {
  Bell,
  BellHandlers,
  BellListener,
  BellSource,
  DoorbellAddress,
} from "./bell-source.ts";
export type { UnpackBundle } from "./bundle-cache.ts";
export { type AllowedEnv, type HostEnv, isForbiddenEnv } from "./child-env.ts";
export { listDevices } from "./devices.ts";
export { queueBells } from "./queue-bells.ts";
export type { SlotGrant } from "./slots.ts";
export {
  startSupervisor,
  type Supervisor,
  type SupervisorOptions,
  type SupervisorStats,
} from "./supervisor.ts";
