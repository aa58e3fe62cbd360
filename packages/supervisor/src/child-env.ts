/**
 * A child's environment, built from nothing.
 *
 * What must stay true: no variable of the worker reaches a child unless the step names it and the
 * operator allowed exactly that name for exactly that project; what could change the process itself
 * (NODE_OPTIONS, LD_*) or belongs to us (COPPICE_*) never does.
 */
import type { Device } from "@coppice/contract";
import { CoppiceError } from "@coppice/core";

export interface AllowedEnv {
  readonly project: string;
  readonly name: string;
}

export type HostEnv = Readonly<Record<string, string | undefined>>;

const FORBIDDEN = /^(COPPICE_|LD_|DYLD_|NODE_OPTIONS$|NODE_PATH$)/;
/** Ours to set: a step can't replace them. */
const OWN = new Set([
  "PATH",
  "HOME",
  "TMPDIR",
  "LANG",
  "TZ",
  "CUDA_VISIBLE_DEVICES",
  "TRACEPARENT",
]);

export const isForbiddenEnv = (name: string): boolean => FORBIDDEN.test(name) || OWN.has(name);

/** @throws CPC_ENV_REFUSED naming the variable */
export const grantedEnv = (
  project: string,
  names: readonly string[],
  allowed: readonly AllowedEnv[],
  host: HostEnv,
): Record<string, string> => {
  const granted: Record<string, string> = {};
  for (const name of names.toSorted()) {
    const isAllowed = allowed.some((entry) => entry.project === project && entry.name === name);
    if (!isAllowed || isForbiddenEnv(name)) {
      throw new CoppiceError("CPC_ENV_REFUSED", {
        detail: isForbiddenEnv(name)
          ? `The variable ${name} is never given to a step.`
          : `The step wants ${name}, not allowed here for the project "${project}".`,
        data: { name, project },
        ...(isForbiddenEnv(name)
          ? {}
          : { hint: `Start the worker with --allow-env ${project}:${name}.` }),
      });
    }
    const value = host[name];
    if (value !== undefined) granted[name] = value;
  }
  return granted;
};

export const childEnv = (options: {
  readonly granted: Readonly<Record<string, string>>;
  readonly host: HostEnv;
  readonly home: string;
  readonly tmp: string;
  readonly devices: readonly Device[];
  readonly threads: number;
}): Record<string, string> => ({
  ...options.granted,
  PATH: options.host["PATH"] ?? "/usr/local/bin:/usr/bin:/bin",
  HOME: options.home,
  TMPDIR: options.tmp,
  LANG: "C.UTF-8",
  TZ: "UTC",
  // Empty, not absent: an attempt without a device must not find the devices of others.
  CUDA_VISIBLE_DEVICES: options.devices.map(({ uuid }) => uuid).join(","),
  OMP_NUM_THREADS: String(options.threads),
  TF_NUM_INTRAOP_THREADS: String(options.threads),
  TF_NUM_INTEROP_THREADS: "1",
  TF_CPP_MIN_LOG_LEVEL: "3",
  TF_FORCE_GPU_ALLOW_GROWTH: "true",
});
