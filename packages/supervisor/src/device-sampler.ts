/** Peaks of GPU use, sampled only while attempts hold devices. */
import { type DeviceUse, sampleDevices } from "./devices.ts";

const SAMPLE_MS = 2000;

export interface DevicePeaks {
  useRatio: number;
  memoryUsedMb: number;
}

export class DeviceSampler {
  readonly #path: string | undefined;
  readonly #watched = new Map<string, DevicePeaks>();
  #timer: NodeJS.Timeout | undefined;
  #isSampling = false;

  /** @param path where `nvidia-smi` is looked for */
  constructor(path: string | undefined) {
    this.#path = path;
  }

  watch(uuid: string): DevicePeaks {
    const peaks = { useRatio: 0, memoryUsedMb: 0 };
    this.#watched.set(uuid, peaks);
    this.#timer ??= setInterval(() => void this.#sample(), SAMPLE_MS).unref();
    return peaks;
  }

  unwatch(uuid: string): void {
    this.#watched.delete(uuid);
    if (this.#watched.size === 0) this.close();
  }

  close(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  async #sample(): Promise<void> {
    if (this.#isSampling) return;
    this.#isSampling = true;
    const uses: readonly DeviceUse[] = await sampleDevices(this.#path).catch(() => []);
    this.#isSampling = false;
    for (const { uuid, useRatio, memoryUsedMb } of uses) {
      const peaks = this.#watched.get(uuid);
      if (peaks === undefined) continue;
      peaks.useRatio = Math.max(peaks.useRatio, useRatio);
      peaks.memoryUsedMb = Math.max(peaks.memoryUsedMb, memoryUsedMb);
    }
  }
}
