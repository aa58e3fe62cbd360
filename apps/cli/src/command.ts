/**
 * What every command is: a function of its arguments and of `Context`; and the one place where
 * errors become text and exit codes.
 */
import type { Client } from "@coppice/contract";
import { CoppiceError, isCoppiceError } from "@coppice/core";
import { Command, type CommanderError } from "commander";

import {
  connect,
  type ConnectionFlags,
  type Environment,
  resolveConnection,
} from "./connection.ts";
import { EXIT, type ExitCode, exitCodeOf } from "./exit-code.ts";
import { createOutput, type Output, type TextStream } from "./output.ts";

/** The process's surroundings, handed in. */
export interface Surroundings {
  readonly env: Environment;
  readonly cwd: string;
  readonly stdin: NodeJS.ReadStream;
  readonly stdout: TextStream;
  readonly stderr: TextStream;
}

export interface CommonFlags extends ConnectionFlags {
  readonly json?: boolean;
}

export interface Context extends Surroundings {
  readonly output: Output;
  readonly flags: CommonFlags;
  /** Aborts on the first Ctrl-C; the second one ends the process. */
  readonly signal: AbortSignal;
  /** @throws CPC_SERVER_UNREACHABLE where nothing names a server */
  client(): Client;
}

export type Action = (context: Context) => Promise<ExitCode>;
/** How a command file adds itself. */
export type Run = (flags: CommonFlags, action: Action) => Promise<void>;

const isInterrupted = (error: unknown, signal: AbortSignal): boolean =>
  signal.aborted && (!isCoppiceError(error) || error.code === "CPC_SERVER_UNREACHABLE");

/** Runs the action; whatever it throws is shown and counted. */
export const runAction = async (
  surroundings: Surroundings,
  flags: CommonFlags,
  action: Action,
): Promise<ExitCode> => {
  const { stdout, stderr, env, cwd } = surroundings;
  const output = createOutput({ stdout, stderr, env, isJson: flags.json === true });
  const interrupt = new AbortController();
  const onSignal = (): void => {
    if (interrupt.signal.aborted) process.exit(EXIT.interrupted);
    interrupt.abort();
  };
  process.on("SIGINT", onSignal);
  process.on("SIGTERM", onSignal);
  try {
    return await action({
      ...surroundings,
      output,
      flags,
      signal: interrupt.signal,
      client: () => connect(resolveConnection(flags, env, cwd)),
    });
  } catch (error) {
    if (isInterrupted(error, interrupt.signal)) return EXIT.interrupted;
    if (isCoppiceError(error)) {
      output.problem(error);
      return exitCodeOf(error.code);
    }
    output.crash(error);
    return EXIT.failed;
  } finally {
    process.off("SIGINT", onSignal);
    process.off("SIGTERM", onSignal);
  }
};

/** A subcommand that talks to a server. */
export const serverCommand = (name: string): Command =>
  plainCommand(name)
    .option("--server <url>", "the server (COPPICE_SERVER_URL)")
    .option("--token-file <file>", "a file with the token (COPPICE_TOKEN, COPPICE_TOKEN_FILE)")
    .option("--project <name>", "the project, for an admin token (COPPICE_PROJECT)");

export const plainCommand = (name: string): Command =>
  new Command(name).option("--json", "print JSON, one stable shape");

/** commander's own complaints: wrong arguments; its help is no error. */
export const exitCodeOfCommander = (error: CommanderError): ExitCode =>
  error.exitCode === 0 ? EXIT.ok : EXIT.usage;

export const wholeNumber =
  (name: string) =>
  (text: string): number => {
    if (!/^-?\d{1,9}$/.test(text)) {
      throw new CoppiceError("CPC_INVALID_INPUT", {
        detail: `expected a whole number for ${name}. Received: ${text}`,
      });
    }
    return Number(text);
  };

export const collect = (value: string, earlier: readonly string[]): readonly string[] => [
  ...earlier,
  value,
];
