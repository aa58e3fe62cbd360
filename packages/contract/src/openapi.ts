/**
 * OpenAPI 3.1 from the route table: schemas by zod's own JSON Schema, nothing written twice.
 */
import { z } from "zod";
import { PROBLEM_CONTENT_TYPE, problemSchema, statusOf } from "./problem.ts";
import { COMMON_PROBLEMS, type Reply, type Route } from "./route.ts";

type Json = Record<string, unknown>;

const schemaOf = (schema: z.ZodType, io: "input" | "output"): Json => {
  const { $schema: _dialect, ...rest } = z.toJSONSchema(schema, { io, unrepresentable: "any" });
  return rest;
};

const CONTENT_TYPE: Readonly<Record<Exclude<Reply["kind"], "empty">, string>> = {
  json: "application/json",
  events: "text/event-stream",
  bytes: "application/octet-stream",
  lines: "application/jsonl",
  text: "text/plain",
  html: "text/html",
};

const parametersOf = (route: Route): Json[] => {
  const places = [
    ["path", route.params],
    ["query", route.query],
    ["header", route.headers],
  ] as const;
  return places.flatMap(([place, object]) => {
    if (object === undefined) return [];
    const { properties = {}, required = [] } = schemaOf(object, "input") as {
      properties?: Record<string, Json>;
      required?: string[];
    };
    return Object.entries(properties).map(([name, schema]) => ({
      name,
      in: place,
      required: place === "path" || required.includes(name),
      schema,
    }));
  });
};

const requestBodyOf = (route: Route): Json => {
  if (route.body === undefined) return {};
  if (route.body.kind === "bytes") {
    return { requestBody: { required: true, content: { "application/octet-stream": {} } } };
  }
  const schema = schemaOf(route.body.schema, "input");
  return { requestBody: { required: true, content: { "application/json": { schema } } } };
};

const replyOf = (route: Route): Json => {
  const { reply } = route;
  const description = "What was asked for";
  if (reply.kind === "empty") return { description };
  const content = "schema" in reply ? { schema: schemaOf(reply.schema, "output") } : {};
  return { description, content: { [CONTENT_TYPE[reply.kind]]: content } };
};

const problemsOf = (route: Route): Json => {
  const byStatus = new Map<number, string[]>();
  for (const code of new Set([...(route.problems ?? []), ...COMMON_PROBLEMS])) {
    byStatus.set(statusOf(code), [...(byStatus.get(statusOf(code)) ?? []), code]);
  }
  const schema = { $ref: "#/components/schemas/Problem" };
  return Object.fromEntries(
    [...byStatus].map(([status, codes]) => [
      String(status),
      { description: codes.join(", "), content: { [PROBLEM_CONTENT_TYPE]: { schema } } },
    ]),
  );
};

const operationOf = (id: string, route: Route): Json => ({
  operationId: id,
  summary: route.summary,
  tags: [id.slice(0, id.indexOf("."))],
  ...(route.scope === "public" ? { security: [] } : { security: [{ token: [route.scope] }] }),
  "x-coppice-scope": route.scope,
  parameters: parametersOf(route),
  ...requestBodyOf(route),
  responses: { [String(route.reply.status)]: replyOf(route), ...problemsOf(route) },
});

export const toOpenApi = (routes: Readonly<Record<string, Route>>, version = "0.1.0"): Json => {
  const paths: Record<string, Json> = {};
  for (const [id, route] of Object.entries(routes)) {
    paths[route.path] ??= {};
    Object.assign(paths[route.path] ?? {}, {
      [route.method.toLowerCase()]: operationOf(id, route),
    });
  }
  return {
    openapi: "3.1.0",
    info: {
      title: "Coppice",
      version,
      description: "A distributed job queue with a worker fleet for machine learning.",
    },
    paths,
    components: {
      schemas: { Problem: schemaOf(problemSchema, "output") },
      securitySchemes: { token: { type: "http", scheme: "bearer", bearerFormat: "cpc_…" } },
    },
  };
};
