/**
 * A redis-server to run: the one on the PATH, else, on Debian and Ubuntu, unpacked from the
 * distribution's own packages into a cache folder, without root and without installing anything.
 */
import { spawn } from "node:child_process";
import { mkdir, mkdtemp, readdir, rename, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { CoppiceError } from "@coppice/core";
import { runTool, toolEnv } from "./run-tool.ts";

export interface RedisBinary {
  readonly command: string;
  readonly env: Readonly<Record<string, string>>;
}

export interface RedisSource {
  /** Where an unpacked Redis is kept between runs. */
  readonly cacheDir: string;
  /** False leaves out the PATH, to try the other way. */
  readonly isPathSearched?: boolean;
}

const unavailable = (detail: string, cause?: unknown): CoppiceError =>
  new CoppiceError("CPC_REDIS_UNREACHABLE", {
    detail,
    hint: "Install redis-server, or set COPPICE_TEST_REDIS_URL.",
    cause,
  });

/** The caller's PATH, not the bare one of runTool: this is the one question that is about it. */
const findOnPath = async (): Promise<string | undefined> =>
  new Promise((resolve) => {
    let found = "";
    const shell = spawn("/bin/sh", ["-c", "command -v redis-server"], {
      stdio: ["ignore", "pipe", "ignore"],
    });
    shell.stdout.setEncoding("utf8").on("data", (text: string) => (found += text));
    shell.once("error", () => resolve(undefined));
    shell.once("close", (code) => resolve(code === 0 ? found.trim() : undefined));
  });

const libraryPath = async (root: string): Promise<string> => {
  const bases = [join(root, "usr/lib"), join(root, "lib")];
  const folders = [...bases];
  for (const base of bases) {
    for (const name of await readdir(base).catch(() => [])) {
      if (name.endsWith("-linux-gnu")) folders.push(join(base, name));
    }
  }
  return folders.join(":");
};

const unpacked = async (root: string): Promise<RedisBinary | undefined> => {
  // `redis-server` is a link to this program, by an absolute path in some versions.
  const command = join(root, "usr/bin/redis-check-rdb");
  const server = join(root, "usr/bin/redis-server");
  for (const candidate of [server, command]) {
    if ((await stat(candidate).catch(() => undefined)) === undefined) continue;
    return { command: candidate, env: { ...toolEnv, LD_LIBRARY_PATH: await libraryPath(root) } };
  }
  return undefined;
};

const aptOptions = (apt: string): string[] =>
  [
    `Dir::State=${join(apt, "state")}`,
    "Dir::State::status=/var/lib/dpkg/status",
    `Dir::Cache=${join(apt, "cache")}`,
    `Dir::Log=${join(apt, "log")}`,
    "Debug::NoLocking=true",
    "APT::Sandbox::User=",
    "Acquire::Retries=2",
  ].flatMap((option) => ["-o", option]);

const download = async (root: string): Promise<void> => {
  const apt = join(root, "apt");
  for (const folder of ["state/lists/partial", "cache/archives/partial", "log"]) {
    await mkdir(join(apt, folder), { recursive: true });
  }
  const options = aptOptions(apt);
  const packages = ["redis-server", "redis-tools"];
  const install = ["install", "--reinstall", "--download-only", "--no-install-recommends", "-y"];
  for (const args of [["update"], [...install, ...packages]]) {
    const result = await runTool("apt-get", ["-q", ...options, ...args], { timeoutMs: 180_000 });
    if (result.exitCode !== 0) {
      const said = result.stderr.trim().slice(-300);
      throw unavailable(`apt-get ${args[0]} ended with ${result.exitCode}: ${said}`);
    }
  }
  const archives = join(apt, "cache/archives");
  for (const name of await readdir(archives)) {
    if (!name.endsWith(".deb")) continue;
    const result = await runTool("dpkg-deb", ["-x", join(archives, name), root]);
    if (result.exitCode !== 0) throw unavailable(`dpkg-deb can't unpack ${name}.`);
  }
  await rm(apt, { recursive: true, force: true });
};

export const locateRedis = async (source: RedisSource): Promise<RedisBinary> => {
  const onPath = source.isPathSearched === false ? undefined : await findOnPath();
  if (onPath !== undefined) return { command: onPath, env: toolEnv };
  const kept = await unpacked(source.cacheDir);
  if (kept !== undefined) return kept;
  if (process.platform !== "linux" || (await runTool("dpkg-deb", ["--version"])).exitCode !== 0) {
    throw unavailable(
      "There is no redis-server on the PATH, and no Debian packages to take it from.",
    );
  }
  await mkdir(source.cacheDir, { recursive: true });
  // Downloaded aside and moved, so that a cut-off download is never taken for a Redis.
  const fresh = await mkdtemp(`${source.cacheDir}.new-`);
  try {
    await download(fresh);
    await rm(source.cacheDir, { recursive: true, force: true });
    await rename(fresh, source.cacheDir).catch(() => undefined);
  } finally {
    await rm(fresh, { recursive: true, force: true });
  }
  const found = await unpacked(source.cacheDir);
  if (found === undefined) throw unavailable("The downloaded packages hold no redis-server.");
  return found;
};
