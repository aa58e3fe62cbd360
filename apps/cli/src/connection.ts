/**
 * Which server, with which token. Field by field: flag, environment, then the `.coppice/dev.json`
 * of a running `coppice dev`, found by walking up.
 *
 * What must stay true: the token of `coppice dev` is sent to no other server than its own.
 */
import { readFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";

import { type Client, createClient } from "@coppice/contract";
import { CoppiceError } from "@coppice/core";
import { z } from "zod";

export type Environment = Readonly<Record<string, string | undefined>>;

export const DEV_FILE = join(".coppice", "dev.json");

export const devFileSchema = z.object({
  server: z.url(),
  token: z.string(),
  project: z.string(),
  /** Of the `coppice dev` that wrote it. */
  pid: z.number().int(),
});
export type DevFile = z.infer<typeof devFileSchema>;

export interface ConnectionFlags {
  readonly server?: string;
  readonly tokenFile?: string;
  readonly project?: string;
}

export interface Connection {
  readonly server: string;
  readonly token: string | undefined;
  /** Names the project for an admin token, which belongs to none. */
  readonly project: string | undefined;
  readonly origin: { readonly server: string; readonly token: string };
}

const isAlive = (pid: number): boolean => {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    // EPERM: it lives, under another user.
    return error instanceof Error && "code" in error && error.code === "EPERM";
  }
};

/** Of the nearest folder upwards in which `coppice dev` runs. */
export const findDevFile = (from: string): { path: string; content: DevFile } | undefined => {
  for (let dir = resolve(from); ; dir = dirname(dir)) {
    const path = join(dir, DEV_FILE);
    try {
      const parsed = devFileSchema.safeParse(JSON.parse(readFileSync(path, "utf8")));
      if (parsed.success && isAlive(parsed.data.pid)) return { path, content: parsed.data };
    } catch {
      // No such file here, or one that was cut short: as if there were none.
    }
    if (dir === dirname(dir)) return undefined;
  }
};

const readToken = (path: string, origin: string): string => {
  try {
    return readFileSync(path, "utf8").trim();
  } catch (cause) {
    throw new CoppiceError("CPC_INVALID_CONFIG", {
      detail: `expected a readable token file from ${origin}. Received: ${path}`,
      cause,
    });
  }
};

const present = (text: string | undefined): string | undefined => (text === "" ? undefined : text);

const tokenOf = (
  flags: ConnectionFlags,
  env: Environment,
): { value: string; origin: string } | undefined => {
  if (flags.tokenFile !== undefined) {
    return { value: readToken(flags.tokenFile, "--token-file"), origin: "--token-file" };
  }
  const direct = present(env["COPPICE_TOKEN"]);
  if (direct !== undefined) return { value: direct, origin: "COPPICE_TOKEN" };
  const file = present(env["COPPICE_TOKEN_FILE"]);
  if (file === undefined) return undefined;
  return { value: readToken(file, "COPPICE_TOKEN_FILE"), origin: "COPPICE_TOKEN_FILE" };
};

/** @throws CPC_SERVER_UNREACHABLE where nothing names a server */
export const resolveConnection = (
  flags: ConnectionFlags,
  env: Environment,
  cwd: string,
): Connection => {
  const dev = findDevFile(cwd);
  const fromEnv = present(env["COPPICE_SERVER_URL"]);
  const server = flags.server ?? fromEnv ?? dev?.content.server;
  if (server === undefined) {
    throw new CoppiceError("CPC_SERVER_UNREACHABLE", {
      detail: "No --server, no COPPICE_SERVER_URL, and no `coppice dev` runs in this folder.",
      hint: "Start `coppice dev` here, or set COPPICE_SERVER_URL and COPPICE_TOKEN.",
    });
  }
  if (!URL.canParse(server) || !/^https?:$/.test(new URL(server).protocol)) {
    throw new CoppiceError("CPC_INVALID_INPUT", {
      detail: `expected a server such as http://127.0.0.1:4600. Received: ${server}`,
    });
  }
  const token = tokenOf(flags, env);
  const devToken = dev !== undefined && dev.content.server === server ? dev.content : undefined;
  let serverOrigin = dev?.path ?? DEV_FILE;
  if (flags.server !== undefined) serverOrigin = "--server";
  else if (fromEnv !== undefined) serverOrigin = "COPPICE_SERVER_URL";
  return {
    server,
    token: token?.value ?? devToken?.token,
    project: flags.project ?? present(env["COPPICE_PROJECT"]),
    origin: {
      server: serverOrigin,
      token: token?.origin ?? (devToken === undefined ? "none" : (dev?.path ?? DEV_FILE)),
    },
  };
};

export const connect = ({ server, token, project }: Connection): Client =>
  createClient({ server, token, project });
