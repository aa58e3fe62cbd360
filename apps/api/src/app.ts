/**
 * The HTTP server, put together and not yet listening: gate, errors, limits, headers, then every
 * route of the table with its handler, Bull Board and the documentation.
 *
 * What must stay true: the gate stands before everything, 404s included; the table and the handlers
 * cover each other (the compiler checks); nothing of a request's query is ever logged.
 */
import { randomBytes } from "node:crypto";
import cookie from "@fastify/cookie";
import helmet from "@fastify/helmet";
import rateLimit from "@fastify/rate-limit";
import scalar from "@scalar/fastify-api-reference";
import { CoppiceError } from "@coppice/core";
import { type OperationId, operationIds, routeOf } from "@coppice/contract";
import { loadClasses } from "@coppice/store";
import Fastify, { type FastifyInstance } from "fastify";
import { createAccess } from "./access.ts";
import { createCatalogueHandlers } from "./catalogue-handlers.ts";
import type { Deps } from "./deps.ts";
import { addErrorHandler } from "./error-handler.ts";
import { createFleetHandlers } from "./fleet-handlers.ts";
import { addGuard } from "./guard.ts";
import { type Handler, type Handlers, registerRoute } from "./handler.ts";
import { createIdentityHandlers } from "./identity-handlers.ts";
import { onceATurn } from "./once-a-turn.ts";
import { createParamsChecker } from "./params-schema.ts";
import { createResultHandlers } from "./result-handlers.ts";
import { createRunChanges } from "./run-changes.ts";
import { createRunHandlers, type VersionOf } from "./run-handlers.ts";
import { createRunLookup } from "./run-lookup.ts";
import { createWorkerHandlers } from "./worker-handlers.ts";

const JSON_BYTES_MAX = 1024 * 1024;
const REQUESTS_PER_MINUTE = 300_000;
const HEADERS_TIMEOUT_MS = 15_000;
/** Artifacts are large and lines may be thin. */
const REQUEST_TIMEOUT_MS = 3_600_000;
const BOARD_CLASSES_MS = 5000;
/** The longest class key fits. */
const PARAM_LENGTH_MAX = 500;

const SELF = "'self'";
const STRICT_CSP = {
  useDefaults: false,
  directives: { defaultSrc: ["'none'"], frameAncestors: ["'none'"], baseUri: ["'none'"] },
};
/** For pages that we ship and serve ourselves: nothing from elsewhere. */
const pageCsp = (scriptSrc: readonly string[]) => ({
  useDefaults: false,
  directives: {
    defaultSrc: ["'none'"],
    scriptSrc: [...scriptSrc],
    styleSrc: [SELF, "'unsafe-inline'"],
    imgSrc: [SELF, "data:"],
    fontSrc: [SELF, "data:"],
    connectSrc: [SELF],
    workerSrc: [SELF, "blob:"],
    formAction: [SELF],
    baseUri: [SELF],
    frameAncestors: ["'none'"],
  },
});

const addLimits = async (app: FastifyInstance, deps: Deps): Promise<void> => {
  await app.register(helmet, {
    contentSecurityPolicy: STRICT_CSP,
    hsts: deps.isSecure ?? false,
    referrerPolicy: { policy: "no-referrer" },
  });
  await app.register(rateLimit, {
    hook: "preHandler",
    max: deps.requestsPerMinute ?? REQUESTS_PER_MINUTE,
    timeWindow: 60_000,
    keyGenerator: (request) => request.caller?.tokenId ?? request.ip,
    // Workers are paced by their lanes; refusing them would only make them late.
    allowList: (request) => request.routeOptions.config.scope === "worker",
    errorResponseBuilder: (_request, { after }) =>
      new CoppiceError("CPC_RATE_LIMITED", { detail: `Try again in ${after}.` }),
  });
};

const addMetrics = (app: FastifyInstance, { metrics }: Deps): void => {
  app.addHook("onResponse", async (request, reply) => {
    // The pattern, never the path: paths hold ids.
    const route = request.is404 ? "none" : (request.routeOptions.url ?? "none");
    const status = String(reply.statusCode);
    metrics.count("coppice_http_requests_total", { route, method: request.method, status });
    metrics.observe("coppice_http_seconds", reply.elapsedTime / 1000, { route });
  });
};

/** Bull Board's page asks another site for fonts: the policy refuses them, so it shall not ask. */
const withoutForeignLinks = (payload: unknown): unknown =>
  typeof payload === "string" && payload.startsWith("<!DOCTYPE html>")
    ? payload.replaceAll(/<link\b[^>]*\bhref="https?:[^>]*>/g, "")
    : payload;

/** Pages that are not in the table: their routes come from elsewhere and get their scope here. */
const addPages = async (app: FastifyInstance, deps: Deps, nonce: string): Promise<void> => {
  await app.register(scalar, {
    routePrefix: "/docs",
    configuration: {
      url: "/openapi.json",
      pageTitle: "Coppice API",
      nonce,
      withDefaultFonts: false,
      telemetry: false,
      // Its buttons lead to services of others.
      showDeveloperTools: "never",
      favicon: "data:,",
      agent: { disabled: true },
    },
  });
  const board = deps.openBoard?.((scope) => scope !== "admin");
  if (board === undefined) return;
  let refreshedAtMs = Number.NEGATIVE_INFINITY;
  const refresh = async (): Promise<void> => {
    if (performance.now() - refreshedAtMs < BOARD_CLASSES_MS) return;
    refreshedAtMs = performance.now();
    board.setClasses((await loadClasses(deps.db)).map(({ key }) => key));
  };
  await app.register(async (scope) => {
    scope.addHook("preHandler", refresh);
    scope.addHook("onSend", async (_request, _reply, payload) => withoutForeignLinks(payload));
    await scope.register(board.plugin);
  });
  app.addHook("onClose", async () => await board.close());
};

/** Before the gate, which refuses routes without a scope. */
const scopePages = (app: FastifyInstance, nonce: string): void => {
  const boardCsp = pageCsp([SELF]);
  const docsCsp = pageCsp([SELF, `'nonce-${nonce}'`]);
  app.addHook("onRoute", (route) => {
    const isBoard = route.url === "/queues" || route.url.startsWith("/queues/");
    const isDocs = route.url === "/docs" || route.url.startsWith("/docs/");
    if (!isBoard && !isDocs) return;
    const isLook = [route.method].flat().every((method) => ["GET", "HEAD"].includes(method));
    route.config = { ...route.config, scope: isLook ? "read" : "admin" };
    route.helmet = { contentSecurityPolicy: isBoard ? boardCsp : docsCsp };
  });
};

const createHandlers = (deps: Deps, app: FastifyInstance): Handlers => {
  const changes = createRunChanges(deps.engine);
  app.addHook("onClose", async () => changes.close());
  const services = {
    deps,
    changes,
    lookup: createRunLookup(deps.db),
    params: createParamsChecker(),
    versions: onceATurn<VersionOf>(),
  };
  return {
    ...createFleetHandlers(deps),
    ...createIdentityHandlers(deps),
    ...createCatalogueHandlers(deps),
    ...createRunHandlers(services),
    ...createResultHandlers(services),
    ...createWorkerHandlers(deps),
  };
};

export const buildApp = async (deps: Deps): Promise<FastifyInstance> => {
  const app = Fastify({
    logger: false,
    bodyLimit: JSON_BYTES_MAX,
    requestTimeout: REQUEST_TIMEOUT_MS,
    forceCloseConnections: "idle",
    onProtoPoisoning: "error",
    onConstructorPoisoning: "error",
    routerOptions: { maxParamLength: PARAM_LENGTH_MAX },
    http: { headersTimeout: HEADERS_TIMEOUT_MS },
  });
  const access = createAccess(deps.db);
  addErrorHandler(app, deps.logger);
  await app.register(cookie);
  // One for the process: the page holds nothing that anyone sent.
  const nonce = randomBytes(18).toString("base64");
  scopePages(app, nonce);
  addGuard(app, { access, allowedHosts: deps.allowedHosts, logger: deps.logger });
  addMetrics(app, deps);
  await addLimits(app, deps);
  const handlers = createHandlers(deps, app);
  const register = (on: FastifyInstance, id: OperationId): void =>
    registerRoute(on, access, id, handlers[id] as unknown as Handler<OperationId>);
  for (const id of operationIds) if (routeOf(id).body?.kind !== "bytes") register(app, id);
  // Bytes are handed to the handler as they arrive, whatever they call themselves.
  await app.register(async (scope) => {
    scope.removeAllContentTypeParsers();
    scope.addContentTypeParser("*", (_request, payload, done) => done(null, payload));
    for (const id of operationIds) if (routeOf(id).body?.kind === "bytes") register(scope, id);
  });
  await addPages(app, deps, nonce);
  return app;
};
