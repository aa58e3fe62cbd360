/** What the API is made of: adapters that `main` opens and tests open for themselves. */
import type { ArtifactStore } from "@coppice/artifacts";
import type { Logger } from "@coppice/core";
import type { Engine } from "@coppice/engine";
import type { Board, DoorbellAddress } from "@coppice/queue";
import type { Database } from "@coppice/store";
import type { MetricsRegistry } from "@coppice/telemetry";

export interface Deps {
  readonly db: Database;
  readonly engine: Engine;
  readonly artifacts: ArtifactStore;
  /** What workers are told when they register. */
  readonly doorbellAddress: DoorbellAddress;
  /** Bull Board; without it there is no /queues. */
  readonly openBoard?: ((isReadOnly: (scope: string) => boolean) => Board) | undefined;
  readonly logger: Logger;
  readonly metrics: MetricsRegistry;
  readonly leaseMs: number;
  readonly heartbeatMs: number;
  readonly allowedHosts: readonly string[];
  /** Cookies are for TLS only. */
  readonly isSecure?: boolean;
  /** @defaultValue 300,000 */
  readonly requestsPerMinute?: number;
}
