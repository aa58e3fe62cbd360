/**
 * The typed client: `client.runs.submit({ body })`, one function per route of the table.
 *
 * What must stay true: only web APIs (it runs in browsers too); a problem becomes the CoppiceError
 * that the server threw; the token goes nowhere but into the authorization header.
 */
import { CoppiceError } from "@coppice/core";
import { z } from "zod";
import { type LogChunk, logChunkSchema, type RunEvent, runEventSchema } from "./entities.ts";
import { fromProblem } from "./problem.ts";
import type { Reply, Route } from "./route.ts";
import {
  type BodyInput,
  operationIds,
  type OperationId,
  type ParamsInput,
  type QueryInput,
  type ReplyOf,
  routeOf,
  type Routes,
} from "./routes.ts";
import { resumeServerEvents } from "./sse.ts";

export interface ClientOptions {
  /** Such as http://127.0.0.1:4600. */
  readonly server: string;
  readonly token?: string | undefined;
  /** For admin tokens, which belong to no project; "default" where it is left out. */
  readonly project?: string | undefined;
  readonly fetch?: typeof fetch | undefined;
}

type WebBody = NonNullable<RequestInit["body"]>;
export type ClientBytes = Uint8Array<ArrayBuffer> | ReadableStream<Uint8Array> | Blob;

type Has<R, Key extends string> = R extends { readonly [K in Key]: unknown } ? true : false;
type PartInput<Key extends string, Value> = {} extends Value
  ? { readonly [K in Key]?: Value }
  : { readonly [K in Key]: Value };
type BodyPart<Id extends OperationId> = Routes[Id] extends {
  readonly body: { readonly kind: "bytes" };
}
  ? { readonly body: ClientBytes }
  : Has<Routes[Id], "body"> extends true
    ? undefined extends BodyInput<Id>
      ? { readonly body?: BodyInput<Id> }
      : PartInput<"body", BodyInput<Id>>
    : unknown;

export interface CallOptions {
  readonly signal?: AbortSignal | undefined;
  readonly headers?: Readonly<Record<string, string>> | undefined;
}

export type CallInput<Id extends OperationId> = CallOptions &
  (Has<Routes[Id], "params"> extends true ? { readonly params: ParamsInput<Id> } : unknown) &
  (Has<Routes[Id], "query"> extends true ? PartInput<"query", QueryInput<Id>> : unknown) &
  BodyPart<Id>;

type CallResult<Id extends OperationId> = Routes[Id]["reply"] extends {
  readonly kind: infer Kind;
}
  ? Kind extends "json"
    ? ReplyOf<Id>
    : Kind extends "empty"
      ? undefined
      : Response
  : never;

type Call<Id extends OperationId> =
  {} extends CallInput<Id>
    ? (input?: CallInput<Id>) => Promise<CallResult<Id>>
    : (input: CallInput<Id>) => Promise<CallResult<Id>>;

type Group<Id extends OperationId> = Id extends `${infer Name}.${string}` ? Name : never;
type Calls = {
  readonly [Name in Group<OperationId>]: {
    readonly [Id in OperationId as Id extends `${Name}.${infer Op}` ? Op : never]: Call<Id>;
  };
};

export interface Client extends Calls {
  readonly server: string;
  /** State changes of a run as they happen, until its last; survives broken connections. */
  events(run: string, options?: StreamOptions & { after?: number }): AsyncGenerator<RunEvent>;
  /** An attempt's log as it grows, until its end; survives broken connections. */
  logs(
    attempt: ParamsInput<"attempts.followLogs">,
    options?: StreamOptions & { offset?: number },
  ): AsyncGenerator<LogChunk>;
}

export interface StreamOptions {
  readonly signal?: AbortSignal;
}

/** What every call looks like from the inside. */
interface AnyInput extends CallOptions {
  readonly params?: Readonly<Record<string, unknown>>;
  readonly query?: Readonly<Record<string, unknown>>;
  readonly body?: unknown;
}

/** Values in paths and queries are text, numbers and booleans. */
const textOf = (value: unknown): string =>
  typeof value === "string" ? value : JSON.stringify(value);

const fillPath = (path: string, params: Readonly<Record<string, unknown>> = {}): string =>
  path.replaceAll(/\{(\w+)\}/g, (_match, name: string) => {
    const value = params[name];
    if (value === undefined || value === "") {
      throw new CoppiceError("CPC_INVALID_INPUT", { detail: `expected a value for ${name}` });
    }
    return encodeURIComponent(textOf(value));
  });

const queryText = (query: Readonly<Record<string, unknown>> = {}): string => {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    if (value !== undefined) search.set(name, textOf(value));
  }
  const text = search.toString();
  return text === "" ? "" : `?${text}`;
};

const bodyOf = (route: Route, body: unknown): { body?: WebBody; type?: string } => {
  if (route.body === undefined) return {};
  if (route.body.kind === "bytes") {
    return { body: body as ClientBytes, type: "application/octet-stream" };
  }
  return { body: JSON.stringify(body ?? {}), type: "application/json" };
};

const readReply = async (reply: Reply, response: Response): Promise<unknown> => {
  if (reply.kind === "empty") {
    await response.arrayBuffer();
    return undefined;
  }
  if (reply.kind !== "json") return response;
  const parsed = reply.schema.safeParse(await response.json().catch(() => undefined));
  if (parsed.success) return parsed.data;
  throw new CoppiceError("CPC_PROTOCOL_VERSION", {
    detail: `expected the reply that this version knows. ${z.prettifyError(parsed.error)}`,
    hint: "Use the same version of Coppice on both sides.",
  });
};

type Send = (route: Route, input: AnyInput) => Promise<Response>;

const createSend = (options: ClientOptions): Send => {
  const doFetch = options.fetch ?? fetch;
  const server = options.server.replace(/\/+$/, "");
  return async (route, input) => {
    const { body, type } = bodyOf(route, input.body);
    const headers: Record<string, string> = { accept: "application/json", ...input.headers };
    if (type !== undefined) headers["content-type"] = type;
    if (options.token !== undefined) headers["authorization"] = `Bearer ${options.token}`;
    if (options.project !== undefined) headers["x-coppice-project"] = options.project;
    const url = server + fillPath(route.path, input.params) + queryText(input.query);
    const init = {
      method: route.method,
      headers,
      redirect: "error",
      ...(input.signal === undefined ? {} : { signal: input.signal }),
      ...(body === undefined ? {} : { body }),
      ...(body instanceof ReadableStream ? { duplex: "half" } : {}),
    } as RequestInit;
    const response = await doFetch(url, init).catch((error: unknown) => {
      if (input.signal?.aborted === true) throw error;
      throw new CoppiceError("CPC_SERVER_UNREACHABLE", { detail: server, cause: error });
    });
    if (response.ok) return response;
    throw fromProblem(response.status, await response.json().catch(() => undefined));
  };
};

async function* stream<S extends z.ZodType>(
  send: Send,
  route: Route,
  input: AnyInput,
  schema: S,
  lastId: number | undefined,
): AsyncGenerator<z.output<S>> {
  const connect = async (last: string | undefined): Promise<Response> =>
    await send(route, {
      ...input,
      headers: {
        accept: "text/event-stream",
        ...(last === undefined ? {} : { "last-event-id": last }),
      },
    });
  const last = lastId === undefined ? undefined : String(lastId);
  for await (const event of resumeServerEvents(connect, last, input.signal)) {
    const parsed = schema.safeParse(JSON.parse(event.data));
    if (!parsed.success) {
      throw new CoppiceError("CPC_PROTOCOL_VERSION", { detail: z.prettifyError(parsed.error) });
    }
    yield parsed.data;
  }
}

/**
 * @example
 * const client = createClient({ server: "http://127.0.0.1:4600", token });
 * const run = await client.runs.submit({ body: { pipeline: "digits" } });
 * for await (const event of client.events(run.id)) show(event);
 */
export const createClient = (options: ClientOptions): Client => {
  const send = createSend(options);
  const calls: Record<string, Record<string, (input?: AnyInput) => Promise<unknown>>> = {};
  for (const id of operationIds) {
    const [group = "", name = ""] = id.split(".");
    const route = routeOf(id);
    calls[group] ??= {};
    const functions = calls[group];
    functions[name] = async (input = {}) => await readReply(route.reply, await send(route, input));
  }
  const methods: Omit<Client, keyof Calls> = {
    server: options.server,
    events: (run, { signal, after } = {}) =>
      stream(send, routeOf("runs.events"), { params: { run }, signal }, runEventSchema, after),
    logs: (params, { signal, offset } = {}) =>
      stream(send, routeOf("attempts.followLogs"), { params, signal }, logChunkSchema, offset),
  };
  return { ...(calls as unknown as Calls), ...methods };
};
