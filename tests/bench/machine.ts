/**
 * What the machine did meanwhile: CPU time of our processes and of everybody else's, from /proc.
 *
 * What must stay true: nothing here costs the measured processes more than two readings. Where
 * there is no /proc (macOS) every figure is undefined, and the rows show wall time only.
 */
import { readdirSync, readFileSync } from "node:fs";
import { availableParallelism, cpus, loadavg, totalmem } from "node:os";

/** Linux counts in hundredths of a second, whatever the kernel's own clock is. */
const TICK_MS = 10;

interface ProcessTimes {
  readonly parent: number;
  readonly ownMs: number;
  /** Of children that have ended and were waited for. */
  readonly endedMs: number;
}

const readTimes = (pid: number): ProcessTimes | undefined => {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, "utf8");
    // The name stands in parentheses and may hold anything; the fields follow the last of them.
    const fields = text
      .slice(text.lastIndexOf(")") + 2)
      .split(" ")
      .map(Number);
    const [, parent = 0] = fields;
    const [user = 0, system = 0, endedUser = 0, endedSystem = 0] = fields.slice(11, 15);
    return {
      parent,
      ownMs: (user + system) * TICK_MS,
      endedMs: (endedUser + endedSystem) * TICK_MS,
    };
  } catch {
    return undefined;
  }
};

const readAll = (): Map<number, ProcessTimes> => {
  const all = new Map<number, ProcessTimes>();
  for (const name of readdirSync("/proc")) {
    const pid = Number(name);
    const times = Number.isInteger(pid) ? readTimes(pid) : undefined;
    if (times !== undefined) all.set(pid, times);
  }
  return all;
};

/** CPU time of a process and all that descend from it, those that have ended too. */
export const cpuOfTree = (pid: number): number | undefined => {
  if (process.platform !== "linux") return undefined;
  const all = readAll();
  const children = new Map<number, number[]>();
  for (const [child, { parent }] of all) {
    const siblings = children.get(parent);
    if (siblings === undefined) children.set(parent, [child]);
    else siblings.push(child);
  }
  const sum = (at: number): number => {
    const times = all.get(at);
    if (times === undefined) return 0;
    const below = (children.get(at) ?? []).reduce((total, child) => total + sum(child), 0);
    return times.ownMs + times.endedMs + below;
  };
  return sum(pid);
};

/** CPU time that the whole machine has spent, on all cores. */
const busyMs = (): number | undefined => {
  if (process.platform !== "linux") return undefined;
  const [, ...fields] = (readFileSync("/proc/stat", "utf8").split("\n")[0] ?? "").split(/\s+/);
  const [user = 0, nice = 0, system = 0, , , irq = 0, softirq = 0] = fields.map(Number);
  return (user + nice + system + irq + softirq) * TICK_MS;
};

export interface Usage {
  readonly wallMs: number;
  /** CPU time per process (or tree of processes) that was watched. */
  readonly cpuMs: Readonly<Record<string, number>>;
  /** Cores that processes of others kept busy, on average. */
  readonly othersCores: number | undefined;
}

export const totalCpuMs = ({ cpuMs }: Usage): number =>
  Object.values(cpuMs).reduce((sum, value) => sum + value, 0);

/**
 * @param pids roots of the process trees to watch
 * @param self what this process is called among them
 */
export const startMeter = (
  pids: Readonly<Record<string, number | undefined>>,
  self: string,
): { stop(): Usage } => {
  const trees = Object.entries(pids).flatMap(([name, pid]) =>
    pid === undefined ? [] : [[name, pid] as const],
  );
  const read = () => new Map(trees.map(([name, pid]) => [name, cpuOfTree(pid)]));
  const before = read();
  const busyBefore = busyMs();
  const nodeBefore = process.cpuUsage();
  const startedAt = performance.now();
  return {
    stop: (): Usage => {
      const wallMs = performance.now() - startedAt;
      const node = process.cpuUsage(nodeBefore);
      const busyAfter = busyMs();
      const cpuMs: Record<string, number> = { [self]: (node.user + node.system) / 1000 };
      for (const [name, after] of read()) {
        const start = before.get(name);
        if (after !== undefined && start !== undefined) cpuMs[name] = after - start;
      }
      const ours = Object.values(cpuMs).reduce((sum, value) => sum + value, 0);
      const othersCores =
        busyBefore === undefined || busyAfter === undefined
          ? undefined
          : Math.max(0, (busyAfter - busyBefore - ours) / wallMs);
      return { wallMs, cpuMs, othersCores };
    },
  };
};

export const cores = availableParallelism();
export const load = (): number => loadavg()[0] ?? 0;

export const machineNote = (): string => {
  const model = cpus()[0]?.model.trim() ?? "unknown processor";
  const memory = `${Math.round(totalmem() / 2 ** 30)} GiB`;
  const system = `${process.platform} ${process.arch}, Node ${process.version}`;
  return `${cores} cores (${model}), ${memory}, ${system}`;
};
