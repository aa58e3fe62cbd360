/** Sign-in, tokens, projects. A secret is in an answer once, when it is made, and in no log. */
import { CoppiceError, formatId, parseId, type ProjectId, type TokenId } from "@coppice/core";
import type { Token } from "@coppice/contract";
import {
  ensureProject,
  findProject,
  insertSignInCode,
  insertToken,
  listProjects,
  listTokens,
  revokeToken,
  type StoredProject,
  type StoredToken,
  takeSignInCode,
} from "@coppice/store";
import { z } from "zod";
import { SESSION_COOKIE } from "./access.ts";
import type { Deps } from "./deps.ts";
import { answered, type Call, type Handlers } from "./handler.ts";
import { decodeCursor, PAGE_DEFAULT, toPage, whole } from "./page.ts";
import { mintToken, newId, newSecret, sha256Of } from "./token.ts";

const CODE_LIFETIME_MS = 5 * 60_000;
const SESSION_LIFETIME_MS = 12 * 3_600_000;

const viewToken = (row: StoredToken): Token => ({
  id: formatId("tok", row.id),
  name: row.name,
  scope: row.scope,
  project: row.projectName,
  createdAt: row.createdAt.toISOString(),
  expiresAt: row.expiresAt?.toISOString() ?? null,
  revokedAt: row.revokedAt?.toISOString() ?? null,
});

const viewProject = (row: StoredProject) => ({
  id: formatId("prj", row.id),
  name: row.name,
  createdAt: row.createdAt.toISOString(),
});

const createToken = async (deps: Deps, call: Call<"tokens.create">) => {
  const { name, scope, project, expiresInMs } = call.body;
  const isGlobal = scope === "worker" || scope === "admin";
  if (isGlobal && project !== undefined) {
    throw new CoppiceError("CPC_INVALID_INPUT", {
      detail: `expected no project: a token with the scope ${scope} is of the installation`,
    });
  }
  const named = project === undefined ? undefined : await findProject(deps.db, project);
  if (project !== undefined && named === undefined) {
    throw new CoppiceError("CPC_NOT_FOUND", { detail: `There is no project ${project}.` });
  }
  const projectId: ProjectId | null = isGlobal ? null : (named?.id ?? (await call.projectId()));
  const minted = mintToken();
  const row = await insertToken(deps.db, {
    id: minted.id,
    projectId,
    name,
    scope,
    secretSha256: minted.secretSha256,
    expiresInMs: expiresInMs ?? null,
  });
  if (row === undefined) throw new CoppiceError("CPC_INTERNAL");
  return { ...viewToken(row), token: minted.text };
};

const signIn = async (deps: Deps, call: Call<"session.signIn">) => {
  const { query, reply } = call;
  const secret = newSecret();
  const isTaken = await takeSignInCode(
    deps.db,
    sha256Of(query.code),
    sha256Of(secret),
    SESSION_LIFETIME_MS,
  );
  if (!isTaken) {
    throw new CoppiceError("CPC_UNAUTHENTICATED", {
      detail: "The code is unknown, was used, or is older than five minutes.",
      hint: "Ask for a new one with POST /v1/sign-in-codes.",
    });
  }
  void reply.setCookie(SESSION_COOKIE, secret, {
    path: "/",
    httpOnly: true,
    sameSite: "strict",
    secure: deps.isSecure ?? false,
    maxAge: SESSION_LIFETIME_MS / 1000,
  });
  void reply.header("cache-control", "no-store").header("referrer-policy", "no-referrer");
  return answered(reply.redirect(query.to === "docs" ? "/docs/" : "/queues", 303));
};

type IdentityIds = Extract<
  keyof Handlers,
  `session.${string}` | `tokens.${string}` | `projects.${string}`
>;

export const createIdentityHandlers = (deps: Deps): Handlers<IdentityIds> => ({
  "session.signIn": async (call) => await signIn(deps, call),
  "session.createCode": async (call) => {
    const code = newSecret();
    const expiresAt = await insertSignInCode(
      deps.db,
      sha256Of(code),
      call.caller.tokenId,
      CODE_LIFETIME_MS,
    );
    return { code, path: `/sign-in?code=${code}`, expiresAt: expiresAt.toISOString() };
  },
  "tokens.create": async (call) => await createToken(deps, call),
  "tokens.list": async ({ query }) => {
    const limit = query.limit ?? PAGE_DEFAULT;
    const before = decodeCursor(query.cursor, z.uuid()) as TokenId | null;
    const rows = await listTokens(deps.db, before, limit + 1);
    return toPage(rows, limit, viewToken, ({ id }) => id);
  },
  "tokens.revoke": async ({ params }) => {
    const id = parseId("tok", params.id);
    if (id === undefined || !(await revokeToken(deps.db, id))) {
      throw new CoppiceError("CPC_NOT_FOUND", { detail: "There is no such token." });
    }
    return undefined;
  },
  "projects.create": async ({ body }) =>
    viewProject(await ensureProject(deps.db, newId<ProjectId>(), body.name)),
  "projects.list": async () => whole((await listProjects(deps.db)).map(viewProject)),
});
