/** Variables that only this app knows, and the doorbell's address from those that it shares. */
import { CoppiceError } from "@coppice/core";
import { DEFAULT_PREFIX, type DoorbellAddress } from "@coppice/queue";
import { type ConfigOf, defineFragment, type doorbellConfig } from "@coppice/telemetry";
import { z } from "zod";

const PORT_MAX = 65_535;

export const schedulerConfig = defineFragment({
  schedulerPort: {
    name: "COPPICE_SCHEDULER_PORT",
    schema: z
      .string()
      .default("4601")
      .pipe(z.string().regex(/^\d{1,5}$/))
      .transform(Number)
      .pipe(z.number().max(PORT_MAX))
      .describe("The port of the scheduler's /livez and /metrics; 0 takes any."),
    expected: `a whole number from 0 to ${PORT_MAX}`,
    defaultText: "4601",
    source: "value",
  },
});

/** Redis only where its URL is set. */
export const doorbellAddressOf = (
  config: ConfigOf<readonly [typeof doorbellConfig]>,
): DoorbellAddress => {
  if (config.redisUrl !== undefined) {
    return { kind: "redis", url: config.redisUrl, prefix: DEFAULT_PREFIX };
  }
  if (config.doorbellDatabaseUrl !== undefined) {
    return { kind: "postgres", url: config.doorbellDatabaseUrl };
  }
  throw new CoppiceError("CPC_INVALID_CONFIG", { detail: "COPPICE_REDIS_URL" });
};
