/** pipelines, deploy, workers, queues: what there is to run, and what runs it. */
import { bundleProject, findProject } from "@coppice/bundle";
import { CoppiceError, formatDuration, isJsonObject, type JsonValue } from "@coppice/core";
import type { Command } from "commander";

import { type CommonFlags, type Context, type Run, serverCommand } from "./command.ts";
import { deployBundle } from "./deploy.ts";
import { EXIT, type ExitCode } from "./exit-code.ts";
import { formatAge } from "./run-format.ts";
import { formatTable } from "./table.ts";

/** `seed: integer = 7` */
const formatParams = (schema: JsonValue): string => {
  const properties = isJsonObject(schema) ? schema["properties"] : undefined;
  if (!isJsonObject(properties)) return "";
  return Object.entries(properties)
    .map(([name, property]) => {
      const type = isJsonObject(property) ? property["type"] : undefined;
      const fallback = isJsonObject(property) ? property["default"] : undefined;
      return `${name}: ${typeof type === "string" ? type : "any"}${
        fallback === undefined ? "" : ` = ${JSON.stringify(fallback)}`
      }`;
    })
    .join(", ");
};

const pipelines = async ({ output, client }: Context): Promise<ExitCode> => {
  const api = client();
  const page = await api.pipelines.list();
  const details = output.isJson
    ? []
    : await Promise.all(page.items.map(({ name }) => api.pipelines.get({ params: { name } })));
  output.result(page, () => {
    if (page.items.length === 0) return ["no pipelines; bring this project's with: coppice deploy"];
    return formatTable({
      head: ["PIPELINE", "VERSION", "STEPS", "PARAMETERS", "DESCRIPTION"],
      rows: details.map(({ name, version, stepCount, params, description }) => [
        name,
        String(version),
        String(stepCount),
        formatParams(params as JsonValue),
        description ?? "",
      ]),
      dim: output.colors.dim,
      right: [1, 2],
    });
  });
  return EXIT.ok;
};

/** @throws CPC_PROJECT_NOT_FOUND */
export const requireProjectAbove = (cwd: string): string => {
  const place = findProject(cwd);
  if (place === undefined) {
    throw new CoppiceError("CPC_PROJECT_NOT_FOUND", { detail: `Looked in ${cwd} and above.` });
  }
  return place.dir;
};

const deploy = async ({ output, client, cwd }: Context): Promise<ExitCode> => {
  const bundle = await bundleProject(requireProjectAbove(cwd));
  const deployed = await deployBundle(client(), bundle);
  output.result(deployed, () => [
    `${deployed.isNew ? output.colors.green("deployed") : "already there"} ${deployed.digest}`,
    ...deployed.versions.map(({ name, version }) => `  ${name} version ${version}`),
  ]);
  return EXIT.ok;
};

const workers = async ({ output, client }: Context): Promise<ExitCode> => {
  const page = await client().workers.list();
  const { colors } = output;
  output.result(page, () => {
    if (page.items.length === 0) return ["no workers; start one with: coppice worker"];
    const nowMs = Date.now();
    return formatTable({
      head: ["WORKER", "STATE", "SLOTS", "GPUS", "LABELS", "VERSION", "SEEN"],
      rows: page.items.map((worker) => {
        const alive = worker.isDraining ? colors.yellow("draining") : colors.green("alive");
        return [
          worker.name,
          worker.isAlive ? alive : colors.red("gone"),
          `${worker.slots - worker.freeSlots}/${worker.slots}`,
          worker.gpus === 0 ? "" : `${worker.gpus - worker.freeGpus}/${worker.gpus}`,
          Object.entries(worker.labels)
            .map(([name, value]) => `${name}=${value}`)
            .join(","),
          worker.version,
          formatAge(worker.seenAt, nowMs),
        ];
      }),
      dim: colors.dim,
      right: [2, 3, 6],
    });
  });
  return EXIT.ok;
};

const queues = async ({ output, client }: Context): Promise<ExitCode> => {
  const page = await client().queues.list();
  output.result(page, () => {
    if (page.items.length === 0) return ["no queues: no step has been ready yet"];
    return formatTable({
      head: ["CLASS", "READY", "QUEUED", "RUNNING", "RETRYING", "OLDEST", "WORKERS", "FREE SLOTS"],
      rows: page.items.map((queue) => [
        queue.class,
        String(queue.ready),
        String(queue.queued),
        String(queue.running),
        String(queue.retrying),
        queue.oldestReadySeconds === 0 ? "" : formatDuration(queue.oldestReadySeconds * 1000),
        String(queue.workers),
        `${queue.freeSlots}/${queue.slots}`,
      ]),
      dim: output.colors.dim,
      right: [1, 2, 3, 4, 5, 6, 7],
    });
  });
  return EXIT.ok;
};

const command = (
  act: Run,
  name: string,
  description: string,
  action: (context: Context) => Promise<ExitCode>,
): Command =>
  serverCommand(name)
    .description(description)
    .action((flags: CommonFlags) => act(flags, action));

export const fleetCommands = (act: Run): readonly Command[] => [
  command(act, "pipelines", "list the pipelines of the server with their parameters", pipelines),
  command(act, "deploy", "bundle this project and bring it to the server", deploy),
  command(act, "workers", "list the workers", workers),
  command(act, "queues", "list what waits and runs, by class of workers", queues),
];
