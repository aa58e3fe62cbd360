/** worker, api, scheduler, migrate, token, gc: handed on to the apps' own bins as they are. */
import { spawn } from "node:child_process";
import { constants } from "node:os";

import { Command } from "commander";

import type { Context, Run } from "./command.ts";
import { EXIT, type ExitCode } from "./exit-code.ts";
import { type AppName, findAppBin } from "./find-bin.ts";

const FORWARDED = ["SIGTERM", "SIGINT", "SIGHUP"] as const;

const handOn = async (
  { env, cwd }: Context,
  app: AppName,
  args: readonly string[],
): Promise<ExitCode> => {
  const child = spawn(process.execPath, [findAppBin(app), ...args], {
    cwd,
    env: { ...env },
    stdio: "inherit",
  });
  // From a terminal the child has the Ctrl-C already; a signal to us alone must reach it as well.
  const forward = (signal: NodeJS.Signals): void => void child.kill(signal);
  for (const signal of FORWARDED) process.on(signal, forward);
  try {
    return await new Promise<ExitCode>((resolve, reject) => {
      child.once("error", reject);
      child.once("close", (code, signal) => {
        resolve(code ?? 128 + (signal === null ? EXIT.failed : constants.signals[signal]));
      });
    });
  } finally {
    for (const signal of FORWARDED) process.off(signal, forward);
  }
};

interface HandedOn {
  readonly name: string;
  readonly app: AppName;
  /** What comes before the caller's arguments. */
  readonly args: readonly string[];
  readonly description: string;
}

const COMMANDS: readonly HandedOn[] = [
  { name: "api", app: "api", args: [], description: "start the API server" },
  { name: "scheduler", app: "scheduler", args: [], description: "start the scheduler" },
  { name: "worker", app: "worker", args: [], description: "start a worker" },
  { name: "migrate", app: "api", args: ["migrate"], description: "bring the database's schema up" },
  {
    name: "token",
    app: "api",
    args: ["token"],
    description: "token create: make a token beside the database",
  },
  { name: "gc", app: "api", args: ["gc"], description: "delete what retention has let go" },
];

export const appCommands = (act: Run): readonly Command[] =>
  COMMANDS.map(({ name, app, args, description }) =>
    new Command(name)
      .description(description)
      .argument("[args...]", "for the app itself")
      .helpOption(false)
      .allowUnknownOption()
      .passThroughOptions()
      .action((rest: readonly string[]) =>
        act({}, (context) => handOn(context, app, [...args, ...rest])),
      ),
  );
