/** Variables that only this app knows, and what follows from those that it shares. */
import type { DoorbellAddress } from "@coppice/queue";
import { DEFAULT_PREFIX } from "@coppice/queue";
import { CoppiceError } from "@coppice/core";
import {
  type ConfigOf,
  defineFragment,
  type doorbellConfig,
  type httpConfig,
} from "@coppice/telemetry";
import { z } from "zod";

export const apiConfig = defineFragment({
  /** The path itself: the file may have to be made, so it can't be read as a secret's file is. */
  bootstrapTokenFile: {
    name: "COPPICE_BOOTSTRAP_TOKEN_FILE",
    schema: z
      .string()
      .optional()
      .describe("A file with the first admin token; made where it is absent or empty."),
    expected: "a path",
    defaultText: undefined,
    source: "value",
  },
  workerRedisUrl: {
    name: "COPPICE_WORKER_REDIS_URL",
    schema: z
      .string()
      .regex(/^rediss?:\/\//)
      .optional()
      .describe("The doorbell's URL for workers, with a credential limited to our keys."),
    expected: "a URL that begins with redis:// or rediss://",
    defaultText: undefined,
    source: "value or file",
  },
});

type Doorbells = ConfigOf<readonly [typeof doorbellConfig]>;

/** Redis only where its URL is set. */
export const doorbellAddressOf = (config: Doorbells): DoorbellAddress => {
  if (config.redisUrl !== undefined) {
    return { kind: "redis", url: config.redisUrl, prefix: DEFAULT_PREFIX };
  }
  if (config.doorbellDatabaseUrl !== undefined) {
    return { kind: "postgres", url: config.doorbellDatabaseUrl };
  }
  throw new CoppiceError("CPC_INVALID_CONFIG", { detail: "COPPICE_REDIS_URL" });
};

/** Hosts besides loopback that requests may name. */
export const allowedHostsOf = (config: ConfigOf<readonly [typeof httpConfig]>): string[] => [
  ...config.allowedHosts,
  ...(config.publicUrl === undefined ? [] : [new URL(config.publicUrl).hostname]),
];
