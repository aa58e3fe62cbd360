/**
 * Who may ask: projects, tokens, browser sessions and the codes that open them.
 *
 * What must stay true: only digests of secrets are stored; a code is spent by the statement that
 * reads it, so it opens one session at most; a session is never worth more than its token.
 */
import type { ProjectId, TokenId } from "@coppice/core";

import type { Queryable, Row } from "./client.ts";

export type TokenScope = "read" | "submit" | "deploy" | "worker" | "admin";

export interface StoredProject {
  readonly id: ProjectId;
  readonly name: string;
  readonly createdAt: Date;
}

const PROJECT = `id, name, created_at as "createdAt"`;
const ENSURE_PROJECT = {
  name: "ensure-project",
  text: `with added as (insert into project (id, name) values ($1, $2) on conflict do nothing
           returning ${PROJECT})
         select * from added union all select ${PROJECT} from project where name = $2 limit 1`,
};
const FIND_PROJECT = {
  name: "find-project",
  text: `select ${PROJECT} from project where name = $1`,
};

export const findProject = async (
  db: Queryable,
  name: string,
): Promise<StoredProject | undefined> =>
  (await db.query<StoredProject & Row>(FIND_PROJECT, [name]))[0];

/** Makes the project where there is none; otherwise answers the one there is. */
export const ensureProject = async (
  db: Queryable,
  id: ProjectId,
  name: string,
): Promise<StoredProject> => {
  const [row] = await db.query<StoredProject & Row>(ENSURE_PROJECT, [id, name]);
  // Another process made it between the two halves of the statement: now it can be seen.
  const project = row ?? (await findProject(db, name));
  if (project === undefined) throw new Error(`expected a project named ${name}`);
  return project;
};

export const listProjects = (db: Queryable): Promise<StoredProject[]> =>
  db.query<StoredProject & Row>(`select ${PROJECT} from project order by name`);

export interface NewToken {
  readonly id: TokenId;
  readonly projectId: ProjectId | null;
  readonly name: string;
  readonly scope: TokenScope;
  readonly secretSha256: Buffer;
  readonly expiresInMs: number | null;
}

export interface StoredToken {
  readonly id: TokenId;
  readonly projectId: ProjectId | null;
  readonly projectName: string | null;
  readonly name: string;
  readonly scope: TokenScope;
  readonly createdAt: Date;
  readonly expiresAt: Date | null;
  readonly revokedAt: Date | null;
}

const TOKEN = `t.id, t.project_id as "projectId", p.name as "projectName", t.name, t.scope,
  t.created_at as "createdAt", t.expires_at as "expiresAt", t.revoked_at as "revokedAt"`;
const IS_LIVE = `t.revoked_at is null and (t.expires_at is null or t.expires_at > clock_timestamp())`;

const INSERT_TOKEN = {
  name: "insert-token",
  text: `with t as (insert into token (id, project_id, name, scope, secret_sha256, expires_at)
           values ($1, $2, $3, $4, $5, clock_timestamp() + $6::float8 * interval '1 millisecond')
           on conflict do nothing returning *)
         select ${TOKEN} from t left join project p on p.id = t.project_id`,
};

/** undefined where a token with this id or secret exists already. */
export const insertToken = async (
  db: Queryable,
  token: NewToken,
): Promise<StoredToken | undefined> =>
  (
    await db.query<StoredToken & Row>(INSERT_TOKEN, [
      token.id,
      token.projectId,
      token.name,
      token.scope,
      token.secretSha256,
      token.expiresInMs,
    ])
  )[0];

const FIND_TOKEN = {
  name: "find-token",
  text: `select ${TOKEN} from token t left join project p on p.id = t.project_id
         where t.secret_sha256 = $1 and ${IS_LIVE}`,
};

/** A token that is neither revoked nor expired, by the digest of its whole text. */
export const findToken = async (
  db: Queryable,
  secretSha256: Buffer,
): Promise<StoredToken | undefined> =>
  (await db.query<StoredToken & Row>(FIND_TOKEN, [secretSha256]))[0];

const FIND_SESSION = {
  name: "find-session",
  text: `select ${TOKEN} from session s join token t on t.id = s.token_id
         left join project p on p.id = t.project_id
         where s.secret_sha256 = $1 and s.expires_at > clock_timestamp() and ${IS_LIVE}`,
};

/** The token behind a browser's session. */
export const findSession = async (
  db: Queryable,
  secretSha256: Buffer,
): Promise<StoredToken | undefined> =>
  (await db.query<StoredToken & Row>(FIND_SESSION, [secretSha256]))[0];

const LIST_TOKENS = {
  name: "list-tokens",
  text: `select ${TOKEN} from token t left join project p on p.id = t.project_id
         where $1::uuid is null or t.id < $1 order by t.id desc limit $2`,
};

export const listTokens = (
  db: Queryable,
  before: TokenId | null,
  limit: number,
): Promise<StoredToken[]> => db.query<StoredToken & Row>(LIST_TOKENS, [before, limit]);

const REVOKE_TOKEN = {
  name: "revoke-token",
  text: `update token set revoked_at = coalesce(revoked_at, clock_timestamp()) where id = $1
         returning id`,
};

/** False where there is no such token; revoking twice keeps the first time. */
export const revokeToken = async (db: Queryable, id: TokenId): Promise<boolean> =>
  (await db.query(REVOKE_TOKEN, [id])).length > 0;

const INSERT_CODE = {
  name: "insert-sign-in-code",
  text: `insert into sign_in_code (code_sha256, token_id, expires_at)
         values ($1, $2, clock_timestamp() + $3 * interval '1 millisecond')
         returning expires_at as "expiresAt"`,
};

export const insertSignInCode = async (
  db: Queryable,
  codeSha256: Buffer,
  tokenId: TokenId,
  lifetimeMs: number,
): Promise<Date> => {
  const [row] = await db.query<{ expiresAt: Date }>(INSERT_CODE, [codeSha256, tokenId, lifetimeMs]);
  if (row === undefined) throw new Error("expected the code's row");
  return row.expiresAt;
};

const TAKE_CODE = {
  name: "take-sign-in-code",
  text: `with taken as (delete from sign_in_code where code_sha256 = $1
           returning token_id, expires_at)
         insert into session (secret_sha256, token_id, expires_at)
         select $2, token_id, clock_timestamp() + $3 * interval '1 millisecond'
         from taken where expires_at > clock_timestamp() returning token_id`,
};

/** Spends the code and opens a session; false where the code is unknown, spent or too old. */
export const takeSignInCode = async (
  db: Queryable,
  codeSha256: Buffer,
  sessionSha256: Buffer,
  lifetimeMs: number,
): Promise<boolean> =>
  (await db.query(TAKE_CODE, [codeSha256, sessionSha256, lifetimeMs])).length > 0;
