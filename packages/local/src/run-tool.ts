/**
 * One short-lived program run to its end: initdb, apt-get, `id`. Its environment is built from
 * nothing, so that no PG* variable of the caller's shell can redirect it.
 */
import { spawn } from "node:child_process";

/** The user that a program runs as; left out: our own. */
export interface ServerAccount {
  readonly name: string;
  readonly uid: number;
  readonly gid: number;
}

export interface ToolOptions {
  readonly account?: ServerAccount | undefined;
  readonly input?: string;
  readonly cwd?: string;
  readonly timeoutMs?: number;
}

export interface ToolResult {
  /** -1: it could not be started, or it ran out of time. */
  readonly exitCode: number;
  readonly stdout: string;
  readonly stderr: string;
}

export const toolEnv: Readonly<Record<string, string>> = {
  PATH: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
  LC_ALL: "C",
};

export const asAccount = (
  account: ServerAccount | undefined,
): { readonly uid?: number; readonly gid?: number } =>
  account === undefined ? {} : { uid: account.uid, gid: account.gid };

export const runTool = async (
  command: string,
  args: readonly string[],
  options: ToolOptions = {},
): Promise<ToolResult> =>
  new Promise((resolve) => {
    let stdout = "";
    let stderr = "";
    const child = spawn(command, args, {
      ...asAccount(options.account),
      cwd: options.cwd ?? "/",
      env: toolEnv,
      stdio: ["pipe", "pipe", "pipe"],
      timeout: options.timeoutMs ?? 120_000,
      killSignal: "SIGKILL",
    });
    child.stdout.setEncoding("utf8").on("data", (text: string) => (stdout += text));
    child.stderr.setEncoding("utf8").on("data", (text: string) => (stderr += text));
    child.once("error", (error) => resolve({ exitCode: -1, stdout, stderr: error.message }));
    child.once("close", (code) => resolve({ exitCode: code ?? -1, stdout, stderr }));
    // A program that ends before it has read everything breaks the pipe: its exit code tells.
    child.stdin.once("error", () => undefined);
    child.stdin.end(options.input ?? "");
  });
