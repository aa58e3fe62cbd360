/**
 * The one gate in front of everything, 404s included: Host, then credential, then scope, then
 * Origin. Default-deny: a route that does not name its scope keeps the server from starting.
 */
import { CoppiceError, type Logger } from "@coppice/core";
import type { Route } from "@coppice/contract";
import type { FastifyInstance, FastifyRequest } from "fastify";
import { type Access, allows, type Caller, SESSION_COOKIE } from "./access.ts";
import { answerError } from "./error-handler.ts";

declare module "fastify" {
  interface FastifyRequest {
    /** Set on every route that is not public. */
    caller: Caller | null;
  }
  interface FastifyContextConfig {
    scope?: Route["scope"];
  }
}

const LOOPBACK = ["127.0.0.1", "localhost", "[::1]"];
const SAFE = new Set(["GET", "HEAD", "OPTIONS"]);

export interface GuardOptions {
  readonly access: Access;
  /** Hosts besides loopback, with or without a port. */
  readonly allowedHosts: readonly string[];
  readonly logger: Logger;
}

const hostNameOf = (host: string): string => host.replace(/:\d{1,5}$/, "").toLowerCase();

const isHostAllowed = (allowed: ReadonlySet<string>, host: string | undefined): boolean =>
  host !== undefined && (allowed.has(host.toLowerCase()) || allowed.has(hostNameOf(host)));

/** A page of another site can't read our answers, but it could send; this is what stops it. */
const isOwnOrigin = (request: FastifyRequest): boolean => {
  const { origin, host } = request.headers;
  return origin !== undefined && URL.canParse(origin) && new URL(origin).host === host;
};

const judge = async (request: FastifyRequest, options: GuardOptions): Promise<Caller | null> => {
  const needed = request.routeOptions.config.scope;
  if (needed === "public" && !request.is404) return null;
  const caller = await options.access.identify({
    authorization: request.headers.authorization,
    cookie: request.cookies[SESSION_COOKIE],
    from: request.ip,
  });
  if (caller === undefined) throw new CoppiceError("CPC_UNAUTHENTICATED");
  if (request.is404) return caller;
  if (needed === undefined || !allows(caller.scope, needed)) {
    throw new CoppiceError("CPC_FORBIDDEN", {
      detail: `expected the scope ${needed ?? "of a declared route"}. Received: ${caller.scope}`,
    });
  }
  if (caller.isCookie && !SAFE.has(request.method) && !isOwnOrigin(request)) {
    throw new CoppiceError("CPC_ORIGIN_NOT_ALLOWED");
  }
  return caller;
};

/** To be called before any route is registered and after the cookie plugin. */
export const addGuard = (app: FastifyInstance, options: GuardOptions): void => {
  const allowed = new Set([...LOOPBACK, ...options.allowedHosts.map((host) => host.toLowerCase())]);
  app.decorateRequest("caller", null);
  app.addHook("onRoute", (route) => {
    if (route.config?.scope === undefined) {
      throw new CoppiceError("CPC_INTERNAL", {
        detail: `expected a scope. The route ${String(route.method)} ${route.url} has none.`,
      });
    }
  });
  app.addHook("onRequest", async (request, reply) => {
    try {
      if (!isHostAllowed(allowed, request.headers.host)) {
        throw new CoppiceError("CPC_HOST_NOT_ALLOWED", {
          hint: "Name the host in COPPICE_ALLOWED_HOSTS.",
        });
      }
      request.caller = await judge(request, options);
    } catch (error) {
      // Not thrown on: a page's own error handler would make something else of it.
      await answerError(request, reply, error, options.logger);
      return reply;
    }
    return undefined;
  });
};
