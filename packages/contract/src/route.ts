/**
 * What a route is: plain data that the server registers, the client calls and OpenAPI is made of.
 *
 * What must stay true: every route names its scope; there is no default. A path has `{name}` parts
 * and each of them has a schema in `params`.
 */
import type { ErrorCode } from "@coppice/core";
import { z } from "zod";

/**
 * deploy ⊃ submit ⊃ read, all three inside one project; admin ⊃ everything in every project;
 * worker stands alone.
 */
export const SCOPES = ["read", "submit", "deploy", "worker", "admin"] as const;
export type Scope = (typeof SCOPES)[number];
export const scopeSchema = z.enum(SCOPES);

export type Method = "GET" | "POST" | "PUT" | "DELETE";

/** A request's body: JSON by schema, or raw bytes up to a limit. */
export type Body =
  | { readonly kind: "json"; readonly schema: z.ZodType; readonly bytesMax?: number }
  | { readonly kind: "bytes"; readonly bytesMax: number };

/** What comes back when all went well. */
export type Reply =
  | { readonly kind: "json"; readonly status: number; readonly schema: z.ZodType }
  /** Server-sent events; each `data` is JSON of this schema, each `id` resumes after it. */
  | { readonly kind: "events"; readonly status: 200; readonly schema: z.ZodType }
  | {
      readonly kind: "bytes" | "lines" | "text" | "html" | "empty";
      readonly status: number;
    };

export interface Route {
  readonly method: Method;
  readonly path: `/${string}`;
  readonly summary: string;
  readonly scope: Scope | "public";
  readonly params?: z.ZodObject;
  readonly query?: z.ZodObject;
  /** Request headers of ours, by lower-case name. */
  readonly headers?: z.ZodObject;
  readonly body?: Body;
  readonly reply: Reply;
  /** Codes of this route, besides those that every route may answer with. */
  readonly problems?: readonly ErrorCode[];
}

export const jsonBody = <S extends z.ZodType>(schema: S) => ({ kind: "json", schema }) as const;
export const json = <S extends z.ZodType>(schema: S, status = 200) =>
  ({ kind: "json", status, schema }) as const;
export const events = <S extends z.ZodType>(schema: S) =>
  ({ kind: "events", status: 200, schema }) as const;

/** Codes that any route may answer with. */
export const COMMON_PROBLEMS = [
  "CPC_UNAUTHENTICATED",
  "CPC_FORBIDDEN",
  "CPC_HOST_NOT_ALLOWED",
  "CPC_RATE_LIMITED",
  "CPC_DATABASE_UNREACHABLE",
  "CPC_INTERNAL",
] as const satisfies readonly ErrorCode[];
