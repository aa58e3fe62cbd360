/** Children start in order, stop in reverse order, and none outlives its parent. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { silentLogger } from "@coppice/core";
import { afterEach, beforeEach, expect, it } from "vitest";
import { freePort } from "./free-port.ts";
import { createProcessTree, type ProcessExit, type TreeProcess } from "./process-tree.ts";
import { isProcessAlive, waitFor, waitForProcessEnd } from "./wait-for.ts";

let dir = "";

beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), "coppice-tree-"));
});

afterEach(async () => {
  await rm(dir, { recursive: true, force: true });
});

const stay = "setInterval(() => undefined, 60_000);";

const node = (name: string, code: string, rest: Partial<TreeProcess> = {}): TreeProcess => ({
  name,
  command: process.execPath,
  args: ["-e", code],
  env: {},
  cwd: dir,
  logFile: join(dir, "logs", `${name}.log`),
  ready: { kind: "line", pattern: /^ready on (?<port>\d+)$/ },
  ...rest,
});

const sayReady = (port = 1): string => `console.log("ready on ${port}");`;

const grow = (stopTimeoutMs = 5_000) => {
  const exits: ProcessExit[] = [];
  const onExit = (exit: ProcessExit): void => void exits.push(exit);
  return { exits, tree: createProcessTree({ logger: silentLogger, onExit, stopTimeoutMs }) };
};

it("waits for the line and hands over what it matched", async () => {
  const { tree, exits } = grow();
  const { match } = await tree.start(node("one", sayReady(4600) + stay));
  await tree.stop();
  expect(match?.groups?.["port"]).toBe("4600");
  expect(await readFile(join(dir, "logs", "one.log"), "utf8")).toBe("ready on 4600\n");
  expect(exits).toEqual([]);
});

it("waits for an address that answers", async () => {
  const port = await freePort();
  const { tree } = grow();
  const url = `http://127.0.0.1:${port}/`;
  const code = `require("http").createServer((q, s) => s.end()).listen(${port}, "127.0.0.1");`;
  await tree.start(node("web", code, { ready: { kind: "http", url } }));
  expect((await fetch(url)).status).toBe(200);
  await tree.stop();
  await expect(fetch(url)).rejects.toThrow("fetch failed");
});

it("waits for the end of one that has only something to do", async () => {
  const { tree, exits } = grow();
  await tree.start(node("migrate", `console.log("done");`, { ready: { kind: "done" } }));
  const failing = node("broken", "process.exit(3)", { ready: { kind: "done" } });
  await expect(tree.start(failing)).rejects.toThrow("`broken` ended with 3");
  await tree.stop();
  expect(exits).toEqual([]);
});

it("stops in reverse order", async () => {
  const { tree } = grow();
  for (const name of ["first", "second", "third"]) {
    const code = `process.on("SIGTERM", () => {
       require("fs").appendFileSync("order", "${name} "); process.exit(0); });
     ${sayReady()}${stay}`;
    await tree.start(node(name, code));
  }
  await tree.stop();
  expect(await readFile(join(dir, "order"), "utf8")).toBe("third second first ");
});

it("kills one that ignores SIGTERM, together with what it has started", async () => {
  const { tree } = grow(300);
  const code = `
    process.on("SIGTERM", () => undefined);
    const inner = ${JSON.stringify(`process.on("SIGTERM", () => undefined);${stay}`)};
    const child = require("child_process").spawn(process.execPath, ["-e", inner]);
    child.once("spawn", () => console.log("ready on " + child.pid));
    ${stay}`;
  const { pid, match } = await tree.start(node("stubborn", code));
  const innerPid = Number(match?.groups?.["port"]);
  expect(isProcessAlive(innerPid)).toBe(true);
  await tree.stop();
  expect(isProcessAlive(pid)).toBe(false);
  expect(await waitForProcessEnd(innerPid, 2_000)).toBe(true);
});

it("tells who ended by itself, and its last lines", async () => {
  const { tree, exits } = grow();
  const code = `${sayReady()} process.once("SIGUSR2", () => {
    console.error("no more wood"); process.exit(7); });${stay}`;
  const { pid } = await tree.start(node("api", code));
  process.kill(pid, "SIGUSR2");
  const exit = await waitFor(() => exits[0], 5_000);
  await tree.stop();
  expect(exit).toMatchObject({ name: "api", exitCode: 7 });
  expect(exit?.lastLines).toEqual(["ready on 1", "no more wood"]);
});

it("reports a process that ends, is missing or is never ready, and leaves nothing of it", async () => {
  const { tree } = grow();
  const ending = tree.start(node("ending", `console.error("no config"); process.exit(2);`));
  await expect(ending).rejects.toMatchObject({ code: "CPC_PROCESS_EXITED" });
  await expect(ending).rejects.toThrow("`ending` ended with 2. It said: no config");
  const missing = tree.start({ ...node("missing", ""), command: join(dir, "nothing") });
  await expect(missing).rejects.toThrow("`missing` can't be started");
  const silent = tree.start(node("silent", `console.log(process.pid);${stay}`, readyWithin(500)));
  await expect(silent).rejects.toThrow("`silent` was not ready after 500 ms");
  const pid = Number(await readFile(join(dir, "logs", "silent.log"), "utf8"));
  expect(isProcessAlive(pid)).toBe(false);
  await tree.stop();
});

const readyWithin = (readyTimeoutMs: number): Partial<TreeProcess> => ({ readyTimeoutMs });

it("leaves no child behind when the parent is killed, and lets a child notice", async () => {
  const noticing = `
    require("fs").createReadStream("", { fd: 3 }).on("close", () =>
      require("fs").writeFileSync("noticed", "yes")).resume();
    process.on("SIGTERM", () => undefined);
    ${sayReady()}${stay}`;
  const code = `
    import { createProcessTree } from ${JSON.stringify(import.meta.resolve("./index.ts"))};
    const quiet = () => undefined;
    const logger = { debug: quiet, info: quiet, warn: quiet, error: quiet, child: () => logger };
    const tree = createProcessTree({ logger, onExit: quiet, stopTimeoutMs: 700 });
    const spec = ${JSON.stringify(node("noticing", noticing))};
    const ready = { kind: "line", pattern: /ready/ };
    const { pid } = await tree.start({ ...spec, ready });
    process.stdout.write(pid + "\\n");
  `;
  const args = ["--conditions=@coppice/source", "--input-type=module", "-e", code];
  const parent = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "inherit"] });
  const line: unknown = (await once(createInterface({ input: parent.stdout }), "line")).at(0);
  parent.kill("SIGKILL");
  expect(await waitForProcessEnd(Number(line), 10_000)).toBe(true);
  expect(await readFile(join(dir, "noticed"), "utf8")).toBe("yes");
});
