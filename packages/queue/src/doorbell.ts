/**
 * The producer's side: rings bells and counts them. What must stay true: nothing here waits longer
 * than its deadline, whatever the server does; ringing twice is harmless; after an error the bells
 * may or may not have been rung, and the caller rings them again.
 */
import { CoppiceError, type Logger, silentLogger } from "@coppice/core";
import { type DoorbellAddress, MAX_CLASSES, queueName } from "./address.ts";
import type { Backend, BellQueue } from "./backend.ts";
import { type Bell, toBellJob } from "./bell.ts";
import { DEADLINE, orDeadline, withinMs } from "./deadline.ts";
import { openBackend } from "./open-backend.ts";

const RING_DEADLINE_MS = 3000;
const DEPTH_DEADLINE_MS = 3000;
const CLOSE_DEADLINE_MS = 2000;
/** One round trip; larger chunks would keep Redis and PostgreSQL busy for too long at a time. */
const CHUNK = 500;

export interface ClassDepth {
  /** Bells that no worker has taken yet. */
  readonly waiting: number;
  /** Bells in a worker's hand: taken, not yet answered. */
  readonly active: number;
}

export interface Doorbell {
  /** @throws CPC_REDIS_UNREACHABLE or CPC_DATABASE_UNREACHABLE, within seconds */
  ring(bells: readonly Bell[]): Promise<void>;
  /** @param classKeys all that were rung from here, unless given */
  depth(classKeys?: readonly string[]): Promise<ReadonlyMap<string, ClassDepth>>;
  close(deadlineMs?: number): Promise<void>;
}

export interface DoorbellOptions {
  readonly logger?: Logger;
}

const byClass = (bells: readonly Bell[]): ReadonlyMap<string, Bell[]> => {
  const groups = new Map<string, Bell[]>();
  for (const bell of bells) {
    const group = groups.get(bell.classKey);
    if (group === undefined) groups.set(bell.classKey, [bell]);
    else group.push(bell);
  }
  return groups;
};

class BullDoorbell implements Doorbell {
  readonly #backend: Backend;
  readonly #logger: Logger;
  readonly #queues = new Map<string, BellQueue>();
  readonly #rung = new Set<string>();

  constructor(backend: Backend, logger: Logger) {
    this.#backend = backend;
    this.#logger = logger;
  }

  async ring(bells: readonly Bell[]): Promise<void> {
    if (bells.length === 0) return;
    const groups = [...byClass(bells)];
    for (const [classKey] of groups) this.#rung.add(classKey);
    await Promise.all(
      groups.map(async ([classKey, group]) => {
        await this.#withQueue(classKey, RING_DEADLINE_MS, async (queue) => {
          const jobs = group.map((bell) => toBellJob(bell, this.#backend.keep));
          if (jobs.length <= this.#backend.addSingly) {
            await Promise.all(
              jobs.map(async ({ name, data, opts }) => queue.add(name, data, opts)),
            );
            return;
          }
          for (let from = 0; from < jobs.length; from += CHUNK) {
            await queue.addBulk(jobs.slice(from, from + CHUNK));
          }
        });
      }),
    );
  }

  async depth(classKeys?: readonly string[]): Promise<ReadonlyMap<string, ClassDepth>> {
    const keys = classKeys ?? [...this.#rung];
    const depths = await Promise.all(
      keys.map(async (classKey): Promise<[string, ClassDepth]> => {
        const counts = await this.#withQueue(classKey, DEPTH_DEADLINE_MS, async (queue) =>
          queue.getJobCounts("waiting", "prioritized", "active"),
        );
        const waiting = (counts["waiting"] ?? 0) + (counts["prioritized"] ?? 0);
        return [classKey, { waiting, active: counts["active"] ?? 0 }];
      }),
    );
    return new Map(depths);
  }

  async close(deadlineMs = CLOSE_DEADLINE_MS): Promise<void> {
    const queues = [...this.#queues.values()];
    this.#queues.clear();
    await withinMs(Promise.allSettled(queues.map(async (queue) => queue.close())), deadlineMs);
    await this.#backend.close(deadlineMs);
  }

  /** A queue that failed is thrown away: BullMQ remembers a failed start for ever. */
  async #withQueue<T>(
    classKey: string,
    deadlineMs: number,
    work: (queue: BellQueue) => Promise<T>,
  ): Promise<T> {
    if (!this.#backend.isConnected()) throw this.#unreachable("The connection is down.");
    const queue = this.#queueOf(classKey);
    try {
      const result = await orDeadline(work(queue), deadlineMs);
      if (result !== DEADLINE) return result;
    } catch (error) {
      this.#drop(classKey, queue);
      const detail = error instanceof Error ? error.message : String(error);
      throw this.#unreachable(detail, error);
    }
    this.#drop(classKey, queue);
    throw this.#unreachable(`No answer within ${deadlineMs} ms.`);
  }

  #unreachable(detail: string, cause?: unknown): CoppiceError {
    return new CoppiceError(this.#backend.unreachable, {
      detail,
      ...(cause === undefined ? {} : { cause }),
    });
  }

  #queueOf(classKey: string): BellQueue {
    const known = this.#queues.get(classKey);
    if (known !== undefined) return known;
    if (this.#queues.size >= MAX_CLASSES) {
      throw new CoppiceError("CPC_TOO_MANY_CLASSES", {
        detail: `expected at most ${MAX_CLASSES} classes.`,
      });
    }
    const queue = this.#backend.openQueue(queueName(classKey));
    queue.on("error", (error) => {
      this.#logger.debug({ err: error, classKey }, "a queue of the doorbell reports an error");
    });
    this.#queues.set(classKey, queue);
    return queue;
  }

  #drop(classKey: string, queue: BellQueue): void {
    if (this.#queues.get(classKey) === queue) this.#queues.delete(classKey);
    // The connection is shared and stays; only BullMQ's listeners on it go.
    void withinMs(queue.close(), CLOSE_DEADLINE_MS).catch(() => undefined);
  }
}

/** @throws CPC_REDIS_UNREACHABLE, CPC_REDIS_EVICTS, CPC_DATABASE_UNREACHABLE */
export const openDoorbell = async (
  address: DoorbellAddress,
  options: DoorbellOptions = {},
): Promise<Doorbell> => {
  const logger = options.logger ?? silentLogger;
  const backend = openBackend(address, { side: "producer", logger });
  try {
    await backend.check();
  } catch (error) {
    await backend.close(CLOSE_DEADLINE_MS);
    throw error;
  }
  return new BullDoorbell(backend, logger);
};
