/**
 * The GPUs of this machine, by `nvidia-smi`, and how much of them is used.
 *
 * What must stay true: a machine without the program has no devices and that is no error; a driver
 * that hangs costs five seconds, not the worker.
 */
import { execFile } from "node:child_process";
import { promisify } from "node:util";

import type { Device } from "@coppice/contract";
import type { Logger } from "@coppice/core";

const DEADLINE_MS = 5000;
const run = promisify(execFile);

export interface DeviceUse {
  readonly uuid: string;
  readonly useRatio: number;
  readonly memoryUsedMb: number;
}

export const listDevices = async (path: string | undefined, logger: Logger): Promise<Device[]> => {
  try {
    return parseDevices(await query("index,uuid,name,memory.total", path));
  } catch (error) {
    const isAbsent = (error as NodeJS.ErrnoException).code === "ENOENT";
    if (!isAbsent) logger.warn({ err: error }, "nvidia-smi failed, this worker offers no devices");
    return [];
  }
};

export const sampleDevices = async (path: string | undefined): Promise<DeviceUse[]> =>
  parseDeviceUse(await query("uuid,utilization.gpu,memory.used", path));

export const parseDevices = (text: string): Device[] =>
  rowsOf(text).flatMap(([index, uuid, name, memoryMb]) => {
    if (index === undefined || uuid === undefined || name === undefined) return [];
    const device = { index: Number(index), uuid, name, memoryMb: Number(memoryMb ?? 0) || 0 };
    return Number.isInteger(device.index) && device.index >= 0 ? [device] : [];
  });

export const parseDeviceUse = (text: string): DeviceUse[] =>
  rowsOf(text).flatMap(([uuid, percent, memoryMb]) =>
    uuid === undefined
      ? []
      : [
          {
            uuid,
            // "[N/A]" where the card does not tell.
            useRatio: Math.min(1, Math.max(0, (Number(percent) || 0) / 100)),
            memoryUsedMb: Number(memoryMb) || 0,
          },
        ],
  );

const rowsOf = (text: string): string[][] =>
  text
    .split("\n")
    .filter((line) => line.trim() !== "")
    .map((line) => line.split(",").map((cell) => cell.trim()));

const query = async (fields: string, path: string | undefined): Promise<string> => {
  const { stdout } = await run(
    "nvidia-smi",
    [`--query-gpu=${fields}`, "--format=csv,noheader,nounits"],
    { timeout: DEADLINE_MS, killSignal: "SIGKILL", env: path === undefined ? {} : { PATH: path } },
  );
  return stdout;
};
