/**
 * From the outbox to the doorbell.
 *
 * The process that committed rings its own bells at once; the sweep rings what is left over. What must
 * stay true: an outbox row is deleted only after its bells were rung, so a bell may come twice, never not
 * at all. Deleting rides on the next commit; after a moment of quiet it is done by itself.
 */
import type { Logger, Metrics } from "@coppice/core";
import type { Bell, Doorbell } from "@coppice/queue";
import { claimOutbox, type Database, deleteOutbox, type OutboxRow } from "@coppice/store";

export interface Relay {
  /** Rings bells that were just committed. Never throws: what fails is left to the sweep. */
  ring(bells: readonly Bell[], outboxId: number): void;
  /** Rows whose bells were rung; the caller deletes them in its transaction. */
  takeRung(): number[];
  /** Puts them back where that transaction failed. */
  giveBack(ids: readonly number[]): void;
  /** Rings old rows. @returns how many bells */
  sweep(): Promise<number>;
  close(): Promise<void>;
}

/** Rows younger than this belong to the process that made them. */
const SWEEP_AGE_MS = 500;
const SWEEP_CLAIM_MS = 5000;
const SWEEP_ROWS_MAX = 200;
/** What a slow doorbell rings well within its deadline. */
const SWEEP_BELLS_MAX = 500;
/** Well below the sweep's age, so that what was rung is gone before anybody looks. */
const TIDY_AFTER_MS = 100;

export interface RelayOptions {
  readonly db: Database;
  readonly doorbell: Doorbell;
  readonly logger: Logger;
  readonly metrics: Metrics;
  readonly failpoint: (label: string) => void;
}

/** Rows whose bells were rung and that nobody has deleted yet. */
const openRungRows = (db: Database) => {
  let rung: number[] = [];
  let timer: NodeJS.Timeout | undefined;
  let inFlight: Promise<void> = Promise.resolve();
  const take = (): number[] => {
    const ids = rung;
    rung = [];
    return ids;
  };
  const tidy = async (): Promise<void> => {
    const ids = take();
    try {
      await deleteOutbox(db, ids);
    } catch {
      // The database is away; the sweep rings them once more, which harms nobody.
      rung.push(...ids);
    }
  };
  return {
    take,
    add: (ids: readonly number[]): void => {
      rung.push(...ids);
      timer ??= setTimeout(() => {
        timer = undefined;
        inFlight = tidy();
      }, TIDY_AFTER_MS);
      timer.unref();
    },
    close: async (): Promise<void> => {
      clearTimeout(timer);
      await inFlight;
      await tidy();
    },
  };
};

const bellsOf = (row: OutboxRow): Bell[] => row.bells as unknown as Bell[];

/** Rows in order, as many at a time as have about this many bells together. */
const inPortions = (rows: readonly OutboxRow[]): OutboxRow[][] => {
  const portions: OutboxRow[][] = [];
  let bells = SWEEP_BELLS_MAX;
  for (const row of rows) {
    if (bells >= SWEEP_BELLS_MAX) {
      portions.push([]);
      bells = 0;
    }
    portions.at(-1)?.push(row);
    bells += bellsOf(row).length;
  }
  return portions;
};

export const openRelay = (options: RelayOptions): Relay => {
  const { db, doorbell, logger, metrics, failpoint } = options;
  const rung = openRungRows(db);
  let isAwayLogged = false;

  const ringNow = async (bells: readonly Bell[], outboxId: number): Promise<void> => {
    try {
      await doorbell.ring(bells);
      failpoint("relay.rung");
      isAwayLogged = false;
      if (outboxId !== 0) rung.add([outboxId]);
    } catch (error) {
      if (isAwayLogged) return;
      isAwayLogged = true;
      logger.warn({ err: error }, "bells could not be rung; they will be rung again");
    }
  };

  return {
    ring: (bells, outboxId) => {
      void ringNow(bells, outboxId);
    },
    takeRung: rung.take,
    giveBack: rung.add,
    sweep: async () => {
      const rows = await claimOutbox(db, SWEEP_AGE_MS, SWEEP_CLAIM_MS, SWEEP_ROWS_MAX);
      let total = 0;
      for (const portion of inPortions(rows)) {
        const bells = portion.flatMap(bellsOf);
        await doorbell.ring(bells);
        failpoint("relay.swept");
        // At once: after a long outage there is more than one call's deadline lets through, and what has
        // been rung must not be rung all over again.
        await deleteOutbox(
          db,
          portion.map((row) => row.id),
        );
        metrics.count("coppice_sweep_bells_total", {}, bells.length);
        total += bells.length;
      }
      return total;
    },
    close: rung.close,
  };
};
