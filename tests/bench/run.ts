#!/usr/bin/env node
/**
 * `npm run bench [-- --only <name>] [--quick] [--profile]`: prints every number beside its target
 * and beside what the same servers do without Coppice, and writes them to
 * `node_modules/.cache/bench.json`.
 *
 * It ends with 1 where a row could not be measured. A target that was missed is a number, not an
 * error: a busy machine must not look like a broken program.
 */
import { fork } from "node:child_process";
import { mkdir, writeFile } from "node:fs/promises";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { cores, machineNote } from "./machine.ts";
import type { Row } from "./row.ts";
import { BENCHES } from "./rows.ts";
import { formatRow, formatSummary } from "./table.ts";

const inCache = (name: string): string =>
  fileURLToPath(new URL(`../../node_modules/.cache/${name}`, import.meta.url));
const RESULT_FILE = inCache("bench.json");
const PROFILE_DIR = inCache("bench-profiles");

const say = (text: string): void => {
  process.stdout.write(`${text}\n`);
};

interface Options {
  readonly quick: boolean;
  readonly profile: boolean;
}

const measure = async (
  name: string,
  { quick, profile }: Options,
): Promise<readonly Row[] | undefined> => {
  const program = fileURLToPath(new URL("run-row.ts", import.meta.url));
  const flags = profile ? ["--cpu-prof", `--cpu-prof-dir=${PROFILE_DIR}`] : [];
  const execArgv = [...process.execArgv, ...flags];
  const child = fork(program, [name, quick ? "quick" : "full"], { execArgv });
  let rows: readonly Row[] | undefined;
  child.on("message", (message) => {
    rows = message as readonly Row[];
  });
  await new Promise<void>((resolve) => child.once("exit", () => resolve()));
  return rows;
};

const main = async (): Promise<number> => {
  const { values } = parseArgs({
    options: {
      only: { type: "string", multiple: true, default: [] },
      quick: { type: "boolean", default: false },
      profile: { type: "boolean", default: false },
      list: { type: "boolean", default: false },
    },
  });
  if (values.list) {
    for (const [name, { about }] of Object.entries(BENCHES)) say(`${name.padEnd(16)} ${about}`);
    return 0;
  }
  const names = values.only.flatMap((text) => text.split(","));
  const unknown = names.filter((name) => !Object.hasOwn(BENCHES, name));
  if (unknown.length > 0) {
    say(`expected some of ${Object.keys(BENCHES).join(", ")}. Received: ${unknown.join(", ")}`);
    return 2;
  }
  say(machineNote());
  if (values.quick) say("quick: small sizes, to see whether it works rather than how fast it is");
  const rows: Row[] = [];
  const failed: string[] = [];
  for (const name of names.length === 0 ? Object.keys(BENCHES) : names) {
    const measured = await measure(name, values);
    if (measured === undefined) failed.push(name);
    for (const row of measured ?? []) {
      rows.push(row);
      say(formatRow(row));
    }
  }
  if (values.profile) say(`CPU profiles of every process: ${PROFILE_DIR}`);
  await mkdir(dirname(RESULT_FILE), { recursive: true });
  const result = {
    at: new Date().toISOString(),
    machine: machineNote(),
    cores,
    isQuick: values.quick,
    rows,
  };
  await writeFile(RESULT_FILE, `${JSON.stringify(result, undefined, 2)}\n`);
  say(formatSummary(rows));
  if (failed.length > 0) say(`could not be measured: ${failed.join(", ")}`);
  return failed.length === 0 ? 0 : 1;
};

process.exitCode = await main();
