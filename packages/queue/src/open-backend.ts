/** The one place that knows both backends. */
import type { DoorbellAddress } from "./address.ts";
import type { Backend, BackendOptions } from "./backend.ts";
import { migratePostgresDoorbell, openPostgresBackend } from "./postgres-backend.ts";
import { openRedisBackend } from "./redis-backend.ts";

export const openBackend = (address: DoorbellAddress, options: BackendOptions): Backend =>
  address.kind === "redis"
    ? openRedisBackend(address, options)
    : openPostgresBackend(address, options);

/** Redis needs nothing; PostgreSQL gets BullMQ's schema. Repeatable. */
export const migrateDoorbell = async (address: DoorbellAddress): Promise<void> => {
  if (address.kind === "postgres") await migratePostgresDoorbell(address);
};
