/**
 * Idempotency keys: claimed in the transaction that carries the request out.
 */
import type { ProjectId } from "@coppice/core";

import type { Queryable, Row } from "./client.ts";

export interface KeyClaim {
  readonly projectId: ProjectId;
  readonly key: string;
  readonly requestSha256: Uint8Array;
  readonly status: number;
  readonly response: unknown;
}

export interface HeldKey {
  readonly projectId: ProjectId;
  readonly key: string;
  readonly requestSha256: Buffer;
  readonly response: unknown;
  /** Whether this very claim made the row. */
  readonly isNew: boolean;
}

const INSERT = {
  name: "claim-idempotency-keys",
  text: `insert into idempotency (project_id, key, request_sha256, status, response)
         select project_id, key, request_sha256, status, response::jsonb
         from unnest($1::uuid[], $2::text[], $3::bytea[], $4::smallint[], $5::text[])
           as u(project_id, key, request_sha256, status, response)
         on conflict (project_id, key) do nothing
         returning project_id as "projectId", key`,
};
const SELECT = {
  name: "read-idempotency-keys",
  text: `select i.project_id as "projectId", i.key, i.request_sha256 as "requestSha256", i.response
         from idempotency i join unnest($1::uuid[], $2::text[]) as u(project_id, key)
           on i.project_id = u.project_id and i.key = u.key`,
};

/** Makes the rows that are not there; answers all of them as they stand. Waits for other claims of a key. */
export const claimIdempotencyKeys = async (
  tx: Queryable,
  claims: readonly KeyClaim[],
): Promise<HeldKey[]> => {
  const projectIds = claims.map((claim) => claim.projectId);
  const keys = claims.map((claim) => claim.key);
  const made = await tx.query<{ projectId: ProjectId; key: string }>(INSERT, [
    projectIds,
    keys,
    claims.map((claim) => Buffer.from(claim.requestSha256)),
    claims.map((claim) => claim.status),
    claims.map((claim) => JSON.stringify(claim.response)),
  ]);
  const isNew = new Set(made.map((row) => `${row.projectId}/${row.key}`));
  const rows = await tx.query<Omit<HeldKey, "isNew"> & Row>(SELECT, [projectIds, keys]);
  return rows.map((row) => ({ ...row, isNew: isNew.has(`${row.projectId}/${row.key}`) }));
};
