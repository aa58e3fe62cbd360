/**
 * `coppice-api [serve | migrate | token create | gc]`. Results go to stdout, everything else to the
 * log on stderr for the short commands and to stdout for the server.
 */
import { parseArgs } from "node:util";
import { CoppiceError, isCoppiceError, type Logger } from "@coppice/core";
import { createLogger, loadConfig, logConfig, processEnvironment } from "@coppice/telemetry";
import { collectGarbage, createToken, migrateAll } from "./beside-database.ts";
import { serve } from "./serve.ts";

const env = processEnvironment();

const say = (line: string): void => {
  process.stdout.write(`${line}\n`);
};

const untilSignal = async (): Promise<string> =>
  await new Promise((resolve) => {
    for (const signal of ["SIGTERM", "SIGINT"] as const) {
      process.once(signal, () => resolve(signal));
    }
  });

const runServer = async (logger: Logger): Promise<void> => {
  const close = await serve(env, logger);
  logger.info({ signal: await untilSignal() }, "api is closing");
  await close();
};

const runCommand = async (args: readonly string[], logger: Logger): Promise<void> => {
  const { positionals, values } = parseArgs({
    args: [...args],
    allowPositionals: true,
    options: {
      scope: { type: "string", default: "read" },
      project: { type: "string" },
      name: { type: "string" },
      quiet: { type: "boolean", short: "q", default: false },
    },
  });
  const command = positionals.join(" ");
  if (command === "migrate") {
    const { from, to } = await migrateAll(env, logger);
    if (!values.quiet) say(from === to ? `schema ${to}, nothing to do` : `schema ${from} → ${to}`);
  } else if (command === "token create") {
    const { scope, project, name, quiet } = values;
    const token = await createToken(env, logger, { scope, project, name });
    if (!quiet) {
      const where = token.project === null ? "the installation" : `project ${token.project}`;
      process.stderr.write(`token with scope ${token.scope} for ${where}; it is shown this once\n`);
    }
    say(token.text);
  } else if (command === "gc") {
    say(JSON.stringify(await collectGarbage(env, logger)));
  } else {
    throw new CoppiceError("CPC_INVALID_INPUT", {
      detail: `expected serve, migrate, token create or gc. Received: ${JSON.stringify(command)}`,
    });
  }
};

export const main = async (args: readonly string[]): Promise<void> => {
  const isServer = args.length === 0 || args[0] === "serve";
  const { logLevel: level } = loadConfig(env, logConfig);
  const logger = createLogger({ name: "api", level, destination: isServer ? 1 : 2 });
  try {
    await (isServer ? runServer(logger) : runCommand(args, logger));
    process.exit(0);
  } catch (error) {
    logger.error({ err: error }, "api ended with an error");
    const hint = isCoppiceError(error) && error.hint !== undefined ? `\n${error.hint}` : "";
    const text = error instanceof Error ? error.message : String(error);
    process.stderr.write(`${isCoppiceError(error) ? `${error.code}: ` : ""}${text}${hint}\n`);
    process.exit(1);
  }
};
