/**
 * Who calls and for which project.
 *
 * What must stay true: a revoked token is refused within five seconds, because nothing about it is
 * remembered longer; what is remembered is keyed by digest, never by the token's text. That the
 * database is away is never answered as "not allowed".
 */
import { CoppiceError, type ProjectId, type TokenId } from "@coppice/core";
import type { Route, Scope } from "@coppice/contract";
import {
  type Database,
  findProject,
  findSession,
  findToken,
  type StoredProject,
  type StoredToken,
} from "@coppice/store";
import { createFailureLimit } from "./failure-limit.ts";
import { parseToken, sha256Of } from "./token.ts";

export const SESSION_COOKIE = "coppice_session";
export const PROJECT_HEADER = "x-coppice-project";
export const DEFAULT_PROJECT = "default";

/** Together with a query that is under way, below the five seconds that are promised. */
const REMEMBER_MS = 4000;
const REMEMBERED_MAX = 10_000;

export interface Caller {
  readonly tokenId: TokenId;
  readonly scope: Scope;
  /** null: a token of the installation. */
  readonly project: { readonly id: ProjectId; readonly name: string } | null;
  /** A browser's session: changes must come from our own origin. */
  readonly isCookie: boolean;
}

const IMPLIED: Readonly<Record<Scope, readonly Scope[]>> = {
  read: ["read"],
  submit: ["read", "submit"],
  deploy: ["read", "submit", "deploy"],
  worker: ["worker"],
  admin: ["read", "submit", "deploy", "worker", "admin"],
};

export const allows = (held: Scope, needed: Route["scope"]): boolean =>
  needed === "public" || IMPLIED[held].includes(needed);

/** Digests of credentials that were good once: they are looked up whatever else their address sends. */
const createSeen = () => {
  const seen = new Set<string>();
  return {
    has: (key: string): boolean => seen.has(key),
    add: (key: string): void => {
      if (seen.size >= REMEMBERED_MAX) seen.clear();
      seen.add(key);
    },
  };
};

/** Answers of the database, kept for a moment; questions under way are asked once. */
const createMemory = <T>(load: (key: string) => Promise<T>) => {
  const kept = new Map<string, { readonly value: Promise<T>; readonly untilMs: number }>();
  return async (key: string): Promise<T> => {
    const found = kept.get(key);
    const nowMs = performance.now();
    if (found !== undefined && found.untilMs > nowMs) return await found.value;
    if (kept.size >= REMEMBERED_MAX) kept.clear();
    const value = load(key);
    kept.set(key, { value, untilMs: nowMs + REMEMBER_MS });
    value.catch(() => kept.delete(key));
    return await value;
  };
};

const toCaller = (token: StoredToken | undefined, isCookie: boolean): Caller | undefined => {
  if (token === undefined) return undefined;
  const { projectId, projectName } = token;
  const project =
    projectId === null || projectName === null ? null : { id: projectId, name: projectName };
  return { tokenId: token.id, scope: token.scope, project, isCookie };
};

export interface Credentials {
  readonly authorization: string | undefined;
  readonly cookie: string | undefined;
  /** The address that they come from. */
  readonly from: string;
}

export interface Access {
  /**
   * undefined where no valid credential came. A header wins over a cookie.
   * @throws CPC_RATE_LIMITED where too many unknown ones came from this address
   */
  identify(credentials: Credentials): Promise<Caller | undefined>;
  /** @throws CPC_FORBIDDEN, CPC_NOT_FOUND */
  projectOf(
    caller: Caller,
    asked: string | undefined,
  ): Promise<{ readonly id: ProjectId; readonly name: string }>;
}

export const createAccess = (db: Database): Access => {
  const digestOf = (key: string): Buffer => Buffer.from(key, "base64");
  const tokens = createMemory(async (key) => await findToken(db, digestOf(key)));
  const sessions = createMemory(async (key) => await findSession(db, digestOf(key)));
  const projects = createMemory<StoredProject | undefined>(
    async (name) => await findProject(db, name),
  );
  const failures = createFailureLimit();
  const seen = createSeen();
  const look = async (
    key: string,
    from: string,
    find: (key: string) => Promise<StoredToken | undefined>,
  ): Promise<StoredToken | undefined> => {
    if (!seen.has(key) && failures.isOver(from)) {
      throw new CoppiceError("CPC_RATE_LIMITED", {
        detail: "Too many unknown credentials came from this address. Try again in a minute.",
      });
    }
    const found = await find(key);
    if (found === undefined) failures.count(from);
    else seen.add(key);
    return found;
  };
  return {
    identify: async ({ authorization, cookie, from }) => {
      if (authorization !== undefined) {
        const text = /^bearer +(\S+)$/i.exec(authorization)?.[1];
        const token = text === undefined ? undefined : parseToken(text);
        if (token === undefined) return undefined;
        return toCaller(await look(token.secretSha256.toString("base64"), from, tokens), false);
      }
      if (cookie === undefined || cookie.length > 200) return undefined;
      return toCaller(await look(sha256Of(cookie).toString("base64"), from, sessions), true);
    },
    projectOf: async (caller, asked) => {
      if (caller.project !== null) {
        if (asked === undefined || asked === caller.project.name) return caller.project;
        throw new CoppiceError("CPC_FORBIDDEN", { detail: "The token is of another project." });
      }
      const name = asked ?? DEFAULT_PROJECT;
      const project = await projects(name);
      if (project !== undefined) return project;
      throw new CoppiceError("CPC_NOT_FOUND", {
        detail: `expected a project. Received: ${JSON.stringify(name.slice(0, 80))}`,
      });
    },
  };
};
