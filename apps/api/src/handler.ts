/**
 * Handlers by operation id, typed by the route table: what came is parsed with the route's schemas
 * before a handler sees it, and what it returns is what the table promises.
 */
import { CoppiceError, type ProjectId } from "@coppice/core";
import {
  type BodyOf,
  fieldErrors,
  type HeadersOf,
  type OperationId,
  type ParamsOf,
  type QueryOf,
  type ReplyOf,
  type Route,
  routeOf,
  type Routes,
} from "@coppice/contract";
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import type { Readable } from "node:stream";
import type { z } from "zod";
import { type Access, type Caller, PROJECT_HEADER } from "./access.ts";

type When<R, Key extends string, T> = R extends { readonly [K in Key]: unknown } ? T : undefined;

export interface Call<Id extends OperationId> {
  readonly params: When<Routes[Id], "params", ParamsOf<Id>>;
  readonly query: When<Routes[Id], "query", QueryOf<Id>>;
  readonly headers: When<Routes[Id], "headers", HeadersOf<Id>>;
  readonly body: Routes[Id] extends { readonly body: { readonly kind: "bytes" } }
    ? Readable
    : When<Routes[Id], "body", BodyOf<Id>>;
  readonly caller: Caller;
  /** The caller's project; looked up only where a handler asks. */
  readonly projectId: () => Promise<ProjectId>;
  readonly request: FastifyRequest;
  readonly reply: FastifyReply;
}

/** Undefined from a handler: it has sent its answer by itself, or there is nothing to send. */
type Result<Id extends OperationId> = Routes[Id]["reply"] extends { readonly kind: "json" }
  ? ReplyOf<Id> | Answered
  : Answered | undefined;

/** Marks that a handler answered through `reply`. */
export interface Answered {
  readonly isAnswered: true;
  readonly payload: unknown;
}
export const answered = (payload?: unknown): Answered => ({ isAnswered: true, payload });

export type Handler<Id extends OperationId> = (call: Call<Id>) => Promise<Result<Id>>;
export type Handlers<Ids extends OperationId = OperationId> = {
  readonly [Id in Ids]: Handler<Id>;
};

const parsePart = (schema: z.ZodType | undefined, value: unknown, prefix: string): unknown => {
  if (schema === undefined) return undefined;
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const errors = fieldErrors(parsed.error.issues, prefix);
  throw new CoppiceError("CPC_INVALID_INPUT", {
    detail: errors.map(({ pointer, message }) => `${pointer}: ${message}`).join("; "),
    data: { errors },
  });
};

/** Per address: whoever asks without a credential, a probe or a browser that signs in. */
const PUBLIC_REQUESTS_PER_MINUTE = 6000;

/** Above what a step may put out; below what a recursive reader, ours or PostgreSQL's, can bear. */
const BODY_LEVELS_MAX = 256;

/**
 * Looked at before zod does: its reader of free JSON overflows the stack on deep values, and for
 * each number beyond a double's range (`1e999`) it writes kilobytes about what it tried.
 */
const isSound = (value: unknown, levels: number): boolean => {
  if (typeof value === "number") return Number.isFinite(value);
  if (typeof value !== "object" || value === null) return true;
  if (levels === 0) return false;
  const inner = Array.isArray(value) ? (value as unknown[]) : Object.values(value);
  for (const item of inner) if (!isSound(item, levels - 1)) return false;
  return true;
};

const parseBody = (schema: z.ZodType, body: unknown): unknown => {
  if (!isSound(body, BODY_LEVELS_MAX)) {
    throw new CoppiceError("CPC_INVALID_INPUT", {
      detail: `/body: expected finite numbers and at most ${BODY_LEVELS_MAX} levels of nesting`,
    });
  }
  return parsePart(schema, body ?? undefined, "/body");
};

const nobody: Caller = {
  tokenId: "" as Caller["tokenId"],
  scope: "read",
  project: null,
  isCookie: false,
};

const createCall = (route: Route, access: Access) => {
  const bodySchema = route.body?.kind === "json" ? route.body.schema : undefined;
  return (request: FastifyRequest, reply: FastifyReply): Call<OperationId> => {
    const caller = request.caller ?? nobody;
    const call = {
      params: parsePart(route.params, request.params, "/params"),
      query: parsePart(route.query, request.query, "/query"),
      headers: parsePart(route.headers, request.headers, "/headers"),
      body: bodySchema === undefined ? request.body : parseBody(bodySchema, request.body),
      caller,
      projectId: async () => {
        const asked = request.headers[PROJECT_HEADER];
        const name = typeof asked === "string" ? asked : undefined;
        return (await access.projectOf(caller, name)).id;
      },
      request,
      reply,
    };
    return call as unknown as Call<OperationId>;
  };
};

const isAnswered = (value: unknown): value is Answered =>
  typeof value === "object" && value !== null && "isAnswered" in value;

export const registerRoute = <Id extends OperationId>(
  app: FastifyInstance,
  access: Access,
  id: Id,
  handler: Handler<Id>,
): void => {
  const route = routeOf(id);
  const toCall = createCall(route, access);
  const { reply: promised, body } = route;
  const bodyLimit = body?.bytesMax;
  app.route({
    method: route.method,
    url: route.path.replaceAll(/\{(\w+)\}/g, ":$1"),
    config: {
      scope: route.scope,
      ...(route.scope === "public"
        ? { rateLimit: { max: PUBLIC_REQUESTS_PER_MINUTE, timeWindow: 60_000 } }
        : {}),
    },
    ...(bodyLimit === undefined || body?.kind === "bytes" ? {} : { bodyLimit }),
    handler: async (request, reply) => {
      const result = await handler(toCall(request, reply));
      if (isAnswered(result)) return result.payload ?? reply;
      void reply.code(promised.status);
      if (promised.kind !== "json") return await reply.send();
      // One pass over the value and no schema of Fastify's on the way.
      return await reply
        .header("content-type", "application/json; charset=utf-8")
        .send(JSON.stringify(result));
    },
  });
};
