/** What `nvidia-smi` says, and that it may say nothing. */
import { chmod, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { silentLogger } from "@coppice/core";
import { expect, test } from "vitest";

import { listDevices, parseDevices, parseDeviceUse } from "./devices.ts";

test("rows become devices; what is no row is left out", () => {
  const text =
    "0, GPU-aa, NVIDIA H100 80GB HBM3, 81559\n1, GPU-bb, NVIDIA A2, [N/A]\n\nNo devices\n";
  expect(parseDevices(text)).toEqual([
    { index: 0, uuid: "GPU-aa", name: "NVIDIA H100 80GB HBM3", memoryMb: 81_559 },
    { index: 1, uuid: "GPU-bb", name: "NVIDIA A2", memoryMb: 0 },
  ]);
  expect(parseDeviceUse("GPU-aa, 37, 1024\nGPU-bb, [N/A], [N/A]\n")).toEqual([
    { uuid: "GPU-aa", useRatio: 0.37, memoryUsedMb: 1024 },
    { uuid: "GPU-bb", useRatio: 0, memoryUsedMb: 0 },
  ]);
});

test("a machine without the program has none", async () => {
  expect(await listDevices("/nonexistent", silentLogger)).toEqual([]);
});

test("a driver that hangs costs five seconds", async () => {
  const dir = await mkdtemp(join(tmpdir(), "coppice-smi-"));
  await writeFile(join(dir, "nvidia-smi"), "#!/bin/sh\nexec /bin/sleep 60\n");
  await chmod(join(dir, "nvidia-smi"), 0o755);
  const warnings: string[] = [];
  const logger = {
    ...silentLogger,
    warn: (_: unknown, message: string) => void warnings.push(message),
  };
  expect(await listDevices(dir, logger)).toEqual([]);
  expect(warnings).toHaveLength(1);
  await rm(dir, { recursive: true });
}, 8000);
