/**
 * Every error becomes a problem. Ours keep their code; Fastify's own are given one of ours; whatever
 * else is CPC_INTERNAL, with the particulars in the log and not in the answer.
 */
import { CoppiceError, type ErrorCode, isCoppiceError, type Logger } from "@coppice/core";
import { PROBLEM_CONTENT_TYPE, statusOf, toProblem } from "@coppice/contract";
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";

const BY_STATUS: Readonly<Record<number, ErrorCode>> = {
  400: "CPC_INVALID_INPUT",
  // Of the pages' own files, for a path that leads out of their folder: as if nothing were there.
  403: "CPC_NOT_FOUND",
  404: "CPC_NOT_FOUND",
  405: "CPC_NOT_FOUND",
  413: "CPC_BODY_TOO_LARGE",
  414: "CPC_INVALID_INPUT",
  415: "CPC_INVALID_INPUT",
  429: "CPC_RATE_LIMITED",
};

export const toCoppiceError = (error: unknown): CoppiceError => {
  if (isCoppiceError(error)) return error;
  if (!(error instanceof Error)) return new CoppiceError("CPC_INTERNAL", { cause: error });
  const { statusCode } = error as { statusCode?: unknown };
  const code = typeof statusCode === "number" ? BY_STATUS[statusCode] : undefined;
  // The messages of Fastify and of JSON.parse speak about the request only.
  if (code !== undefined) return new CoppiceError(code, { detail: error.message, cause: error });
  return new CoppiceError("CPC_INTERNAL", { cause: error });
};

const sendProblem = async (
  request: FastifyRequest,
  reply: FastifyReply,
  error: CoppiceError,
): Promise<void> => {
  const problem = toProblem(error, request.url.split("?", 1)[0]);
  if (problem.status === 401) void reply.header("www-authenticate", 'Bearer realm="coppice"');
  if (problem.status === 503) void reply.header("retry-after", "1");
  await reply.code(problem.status).type(PROBLEM_CONTENT_TYPE).send(JSON.stringify(problem));
};

export const answerError = async (
  request: FastifyRequest,
  reply: FastifyReply,
  thrown: unknown,
  logger: Logger,
): Promise<void> => {
  const error = toCoppiceError(thrown);
  if (statusOf(error.code) >= 500) {
    const fields = { err: thrown, route: request.routeOptions.url ?? "", method: request.method };
    if (error.isRetryable && error.code !== "CPC_INTERNAL") logger.warn(fields, "request failed");
    else logger.error(fields, "request failed");
  }
  // The particulars of our own failures are for the log, those of our surroundings (a host, a port)
  // for callers that we know.
  const isKnown = request.caller !== null || statusOf(error.code) < 500;
  const shown = error.code === "CPC_INTERNAL" || !isKnown ? new CoppiceError(error.code) : error;
  await sendProblem(request, reply, shown);
};

export const addErrorHandler = (app: FastifyInstance, logger: Logger): void => {
  app.setErrorHandler(async (thrown, request, reply) => {
    await answerError(request, reply, thrown, logger);
    return reply;
  });
  app.setNotFoundHandler(async (request, reply) => {
    await sendProblem(request, reply, new CoppiceError("CPC_NOT_FOUND"));
    return reply;
  });
};
