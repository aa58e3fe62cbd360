/**
 * Bull Board over the doorbell, for people who want to see bells. It has no authentication of its
 * own: the app that mounts it puts its hooks in front and says, per request, who may only look.
 */
import { CoppiceError, type Logger, silentLogger } from "@coppice/core";
import { createBullBoard } from "@bull-board/api";
import { BullMQAdapter } from "@bull-board/api/bullMQAdapter";
import { FastifyAdapter } from "@bull-board/fastify";
import type { Queue } from "bullmq";
import type { FastifyPluginAsync, FastifyRequest } from "fastify";
import { type DoorbellAddress, queueName } from "./address.ts";
import type { BellQueue } from "./backend.ts";
import { withinMs } from "./deadline.ts";
import { openBackend } from "./open-backend.ts";

const CLOSE_DEADLINE_MS = 2000;

export interface BoardOptions {
  readonly address: DoorbellAddress;
  /** Where the board lives, such as `/queues`. */
  readonly basePath: string;
  /** True where this request may look and change nothing. */
  readonly readOnly: (request: FastifyRequest) => boolean;
  readonly logger?: Logger;
}

export interface Board {
  /** To be registered without a prefix. */
  readonly plugin: FastifyPluginAsync;
  /** Shows exactly these classes. */
  setClasses(classKeys: readonly string[]): void;
  close(): Promise<void>;
}

const LOOKING = new Set(["GET", "HEAD", "OPTIONS"]);

export const openBoard = (options: BoardOptions): Board => {
  const logger = options.logger ?? silentLogger;
  const backend = openBackend(options.address, { side: "producer", logger });
  const queues = new Map<string, BellQueue>();
  const adapter = new FastifyAdapter();
  adapter.setBasePath(options.basePath);
  const board = createBullBoard({
    queues: [],
    serverAdapter: adapter,
    options: {
      uiConfig: {
        boardTitle: "Coppice",
        hideRedisDetails: true,
        hideDocsLink: true,
        miscLinks: [],
        // A list of clients would need rights that the doorbell's credential need not have.
        showWorkers: false,
      },
    },
  });

  const open = (classKey: string): BellQueue => {
    const queue = backend.openQueue(queueName(classKey));
    queue.on("error", (error) => {
      logger.debug({ err: error, classKey }, "a queue of the board reports an error");
    });
    return queue;
  };

  const plugin: FastifyPluginAsync = async (fastify) => {
    fastify.addHook("onRequest", async (request, reply) => {
      if (LOOKING.has(request.method) || !options.readOnly(request)) return;
      const error = new CoppiceError("CPC_FORBIDDEN", { detail: "Changing queues needs admin." });
      await reply
        .code(403)
        .send({ code: error.code, message: error.message, error: error.message });
    });
    await fastify.register(adapter.registerPlugin(), { prefix: options.basePath });
  };

  return {
    plugin,
    setClasses: (classKeys) => {
      for (const classKey of classKeys) {
        if (!queues.has(classKey)) queues.set(classKey, open(classKey));
      }
      for (const [classKey, queue] of queues) {
        if (classKeys.includes(classKey)) continue;
        queues.delete(classKey);
        void withinMs(queue.close(), CLOSE_DEADLINE_MS).catch(() => undefined);
      }
      board.replaceQueues(
        Array.from(queues, ([classKey, queue]) => {
          // The board's types know only queues on Redis; its code asks the queue's own backend.
          // oxlint-disable-next-line typescript/no-unsafe-type-assertion
          const anyQueue = queue as unknown as Queue;
          return new BullMQAdapter(anyQueue, { displayName: classKey });
        }),
      );
    },
    close: async () => {
      const closing = [...queues.values()].map(async (queue) => queue.close());
      await withinMs(Promise.allSettled(closing), CLOSE_DEADLINE_MS);
      await backend.close(CLOSE_DEADLINE_MS);
    },
  };
};
