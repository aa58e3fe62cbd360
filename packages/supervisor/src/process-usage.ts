/**
 * What process groups use, sampled from /proc while attempts run.
 *
 * Memory is the resident size of the group: the leader's own plus what its descendants do not share
 * with it. Where there is no /proc (macOS) nothing is sampled and only the heap limit holds.
 */
import { readdir, readFile } from "node:fs/promises";

const SAMPLE_MS = 250;
/** Finding the members of groups means looking at every process, so it is done more rarely. */
const MEMBERS_EVERY = 4;
const PAGE_BYTES = 4096;
const TICK_MS = 10;

export interface GroupUse {
  readonly rssBytes: number;
  /** Of the leader since its start, in steps of 10 ms. */
  readonly cpuMs: number;
}

export class UsageSampler {
  readonly #watched = new Map<number, (use: GroupUse) => void>();
  #members = new Map<number, number[]>();
  #timer: NodeJS.Timeout | undefined;
  #rounds = 0;
  #isSampling = false;

  /** @param leader process id, which is its group's id */
  watch(leader: number, onUse: (use: GroupUse) => void): void {
    this.#watched.set(leader, onUse);
    this.#timer ??= setInterval(() => void this.#sample(), SAMPLE_MS).unref();
  }

  unwatch(leader: number): void {
    this.#watched.delete(leader);
  }

  close(): void {
    clearInterval(this.#timer);
    this.#watched.clear();
  }

  async #sample(): Promise<void> {
    if (this.#isSampling || this.#watched.size === 0) return;
    this.#isSampling = true;
    try {
      if (this.#rounds % MEMBERS_EVERY === 0) this.#members = await findMembers();
      this.#rounds += 1;
      await Promise.all(
        [...this.#watched.keys()].map(async (leader) => await this.#measure(leader)),
      );
    } finally {
      this.#isSampling = false;
    }
  }

  async #measure(leader: number): Promise<void> {
    const own = await memoryOf(leader);
    const cpuMs = await cpuMsOf(leader);
    if (own === undefined || cpuMs === undefined) return;
    let rssBytes = own.residentBytes;
    for (const pid of this.#members.get(leader) ?? []) {
      if (pid === leader) continue;
      const memory = await memoryOf(pid);
      if (memory !== undefined) rssBytes += memory.residentBytes - memory.sharedBytes;
    }
    this.#watched.get(leader)?.({ rssBytes, cpuMs });
  }
}

const memoryOf = async (
  pid: number,
): Promise<{ residentBytes: number; sharedBytes: number } | undefined> => {
  const text = await readFile(`/proc/${pid}/statm`, "utf8").catch(() => undefined);
  if (text === undefined) return undefined;
  const [, resident = "0", shared = "0"] = text.split(" ");
  return {
    residentBytes: Number(resident) * PAGE_BYTES,
    sharedBytes: Number(shared) * PAGE_BYTES,
  };
};

/** Fields after the command's closing parenthesis: 2 is the group, 11 and 12 are CPU ticks. */
const statOf = async (pid: number | string): Promise<string[] | undefined> => {
  const text = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => undefined);
  return text?.slice(text.lastIndexOf(")") + 2).split(" ");
};

const cpuMsOf = async (pid: number): Promise<number | undefined> => {
  const fields = await statOf(pid);
  return fields === undefined ? undefined : (Number(fields[11]) + Number(fields[12])) * TICK_MS;
};

const findMembers = async (): Promise<Map<number, number[]>> => {
  const members = new Map<number, number[]>();
  const entries = await readdir("/proc").catch(() => []);
  for (const entry of entries.filter((name) => /^\d+$/.test(name))) {
    const group = Number((await statOf(entry))?.[2]);
    if (!Number.isInteger(group)) continue;
    const pids = members.get(group);
    if (pids === undefined) members.set(group, [Number(entry)]);
    else pids.push(Number(entry));
  }
  return members;
};
