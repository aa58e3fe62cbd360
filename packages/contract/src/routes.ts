/**
 * The HTTP API: one table, from operation id to route. The server registers it, the client calls by
 * it, OpenAPI is made of it; nothing else knows a path.
 */
import type { z } from "zod";
import type { Route } from "./route.ts";
import { runRoutes } from "./run-routes.ts";
import { systemRoutes } from "./system-routes.ts";
import { workerRoutes } from "./worker-routes.ts";

export const ROUTES = { ...systemRoutes, ...runRoutes, ...workerRoutes } as const satisfies Record<
  string,
  Route
>;
export type Routes = typeof ROUTES;
export type OperationId = keyof Routes;

type Part<R, Key extends string> = R extends { readonly [K in Key]: infer S extends z.ZodType }
  ? S
  : never;
type BodySchema<R> = R extends { readonly body: { readonly schema: infer S extends z.ZodType } }
  ? S
  : never;
type ReplySchema<R> = R extends { readonly reply: { readonly schema: infer S extends z.ZodType } }
  ? S
  : never;

/** As the server sees them, defaults filled in. */
export type ParamsOf<Id extends OperationId> = z.output<Part<Routes[Id], "params">>;
export type QueryOf<Id extends OperationId> = z.output<Part<Routes[Id], "query">>;
export type HeadersOf<Id extends OperationId> = z.output<Part<Routes[Id], "headers">>;
export type BodyOf<Id extends OperationId> = z.output<BodySchema<Routes[Id]>>;
/** As the client sends it. */
export type ParamsInput<Id extends OperationId> = z.input<Part<Routes[Id], "params">>;
export type QueryInput<Id extends OperationId> = z.input<Part<Routes[Id], "query">>;
export type HeadersInput<Id extends OperationId> = z.input<Part<Routes[Id], "headers">>;
export type BodyInput<Id extends OperationId> = z.input<BodySchema<Routes[Id]>>;
export type ReplyOf<Id extends OperationId> = z.output<ReplySchema<Routes[Id]>>;

export const operationIds = Object.keys(ROUTES) as OperationId[];
export const routeOf = (id: OperationId): Route => ROUTES[id];
