/** The command line: all commands under one program, their exit code as the answer. */
import { CoppiceError, isCoppiceError } from "@coppice/core";
import { Command, CommanderError } from "commander";

import { appCommands } from "./app-commands.ts";
import { exitCodeOfCommander, type Run, runAction, type Surroundings } from "./command.ts";
import { demoCommand } from "./demo-command.ts";
import { devCommand } from "./dev-command.ts";
import { doctorCommand } from "./doctor-command.ts";
import { EXIT, type ExitCode, exitCodeOf } from "./exit-code.ts";
import { fleetCommands } from "./fleet-commands.ts";
import { logsCommand } from "./logs-command.ts";
import { createOutput } from "./output.ts";
import { runCommands } from "./run-commands.ts";
import { VERSION } from "./version.ts";

export interface MainInput extends Surroundings {
  /** Without node and the script. */
  readonly argv: readonly string[];
}

const EXIT_CODES = `
Exit codes: 0 ok · 1 failed · 2 usage · 3 not found · 4 authentication · 5 unreachable ·
130 interrupted`;

const createProgram = (act: Run, surroundings: Surroundings): Command => {
  const program = new Command("coppice")
    .description("A distributed job queue with a worker fleet for machine learning.")
    .version(VERSION)
    .enablePositionalOptions()
    .addHelpText("after", EXIT_CODES);
  const commands = [
    devCommand(act),
    demoCommand(act),
    ...runCommands(act),
    logsCommand(act),
    ...fleetCommands(act),
    doctorCommand(act),
    ...appCommands(act),
  ];
  for (const command of [program, ...commands]) {
    command.exitOverride().configureOutput({
      writeOut: (text) => void surroundings.stdout.write(text),
      writeErr: (text) => void surroundings.stderr.write(text),
    });
  }
  for (const command of commands) program.addCommand(command);
  return program;
};

/** @returns the exit code; never throws, never ends the process */
export const main = async ({ argv, ...surroundings }: MainInput): Promise<ExitCode> => {
  let exitCode: ExitCode = EXIT.ok;
  const act: Run = async (flags, action) => {
    exitCode = await runAction(surroundings, flags, action);
  };
  try {
    const program = createProgram(act, surroundings);
    if (argv.length === 0) {
      program.outputHelp();
      return EXIT.usage;
    }
    await program.parseAsync([...argv], { from: "user" });
    return exitCode;
  } catch (error) {
    if (error instanceof CommanderError) return exitCodeOfCommander(error);
    const output = createOutput({ ...surroundings, isJson: argv.includes("--json") });
    const known = isCoppiceError(error)
      ? error
      : new CoppiceError("CPC_INTERNAL", { cause: error });
    output.problem(known);
    return exitCodeOf(known.code);
  }
};
