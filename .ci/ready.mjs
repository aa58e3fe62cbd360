/**
 * Makes a fresh checkout able to run: packages installed if the lock file changed, code built.
 *
 * It runs before anything is installed and on whatever Node the machine has; so: no dependencies, the
 * syntax of Node 20. Two at the same time wait for each other. When nothing changed it takes well
 * under a second. It prints one line, and what npm or the compiler says when they fail.
 */
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import * as fs from "node:fs";
import { env } from "node:process";
import { delimiter, join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const modules = join(root, "node_modules");
const bin = join(modules, ".bin");
const stampFile = join(modules, ".coppice-ready");
const lockFile = join(modules, ".coppice-ready.lock");
const WAIT_MS = 15 * 60_000;

const readText = (file) => {
  try {
    return fs.readFileSync(file, "utf8");
  } catch {
    return "";
  }
};

const isAlive = (pid) => {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error.code === "EPERM";
  }
};

/** Takes the lock if nobody living holds it. */
const tryLock = () => {
  try {
    fs.writeFileSync(lockFile, String(process.pid), { flag: "wx" });
    return true;
  } catch (error) {
    if (error.code !== "EEXIST") throw error;
  }
  const holder = Number(readText(lockFile));
  // An empty file is a lock that is being written this very moment, unless it stays so.
  const ageMs = Date.now() - (fs.statSync(lockFile, { throwIfNoEntry: false })?.mtimeMs ?? 0);
  if (holder > 0 ? isAlive(holder) : ageMs < 5_000) return false;
  const aside = `${lockFile}.${process.pid}`;
  try {
    fs.renameSync(lockFile, aside);
    // Someone else may have replaced the dead lock in between: then theirs goes back.
    if (Number(readText(aside)) !== holder) fs.linkSync(aside, lockFile);
  } catch {
    // Whoever was quicker decides; the next round looks again.
  }
  fs.rmSync(aside, { force: true });
  return false;
};

const run = (command, args) => {
  const result = spawnSync(command, args, {
    cwd: root,
    env: { ...env, PATH: `${bin}${delimiter}${env.PATH ?? ""}` },
    stdio: ["ignore", "pipe", "pipe"],
    maxBuffer: 64 * 1024 * 1024,
    encoding: "utf8",
  });
  if (result.status === 0) return;
  const reason = result.error?.message ?? `it ended with ${result.status ?? result.signal}`;
  process.stdout.write("\n");
  process.stderr.write(`${result.stdout ?? ""}${result.stderr ?? ""}`);
  process.stderr.write(`\`${command} ${args.join(" ")}\` failed: ${reason}\n`);
  process.exit(1);
};

/** What an installation depends on; the platform too, for folders that two systems share. */
const wantedStamp = () =>
  createHash("sha256")
    .update(readText(join(root, "package-lock.json")))
    .update(`${process.platform} ${process.arch}`)
    .digest("hex");

const missingBins = () =>
  fs.readdirSync(join(root, "apps")).flatMap((app) => {
    const manifest = readText(join(root, "apps", app, "package.json"));
    if (manifest === "") return [];
    return Object.entries(JSON.parse(manifest).bin ?? {})
      .filter(([, file]) => fs.existsSync(join(root, "apps", app, file)))
      .map(([name]) => name)
      .filter((name) => !fs.existsSync(join(bin, name)));
  });

const seconds = (sinceMs) => `${((Date.now() - sinceMs) / 1000).toFixed(1)} s`;

const install = () => {
  const startMs = Date.now();
  process.stdout.write("Coppice: installing packages … ");
  const quiet = ["--no-audit", "--no-fund", "--loglevel=error"];
  // Elsewhere the lock, made on Linux, lacks the platform's optional packages: npm must look itself.
  const elsewhere = process.platform === "linux" ? [] : ["--no-package-lock"];
  run("npm", ["install", ...quiet, ...elsewhere]);
  fs.writeFileSync(stampFile, wantedStamp());
  process.stdout.write(`${seconds(startMs)}, `);
};

const prepare = () => {
  if (readText(stampFile) === wantedStamp()) process.stdout.write("Coppice: ");
  else install();
  // A program whose file came after the installation has no link yet.
  if (missingBins().length > 0) run("npm", ["rebuild", "--ignore-scripts", "--loglevel=error"]);
  const startMs = Date.now();
  run(join(bin, "tsc"), ["-b"]);
  process.stdout.write(`built in ${seconds(startMs)}\n`);
};

fs.mkdirSync(modules, { recursive: true });
const deadlineMs = Date.now() + WAIT_MS;
while (!tryLock()) {
  if (Date.now() > deadlineMs)
    throw new Error(`Another process holds ${lockFile}; remove it if not.`);
  await pause(100);
}
const unlock = () => fs.rmSync(lockFile, { force: true });
process.once("exit", unlock);
for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => process.exit(1));
prepare();
