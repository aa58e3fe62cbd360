/**
 * A model as bytes: one line of JSON, then all weights as little-endian float32.
 *
 * What must stay true: bytes are untrusted. The header is bounded and parsed against a schema that
 * knows only our own kinds of layers; the sizes that follow from the description must equal the
 * body's length before anything is allocated; the body's digest must match; a key that could reach
 * a prototype is refused. No path is ever read from a file.
 */
import { createHash } from "node:crypto";
import { CoppiceError, type JsonObject } from "@coppice/core";
import { z } from "zod";
import { createNetwork, floatBytes, type Network } from "./network.ts";
import { networkSpecSchema, sizeOf, weightShapes } from "./network-spec.ts";

const FORMAT = "coppice-model-1";
const HEADER_BYTES_MAX = 1024 * 1024;
const BODY_BYTES_MAX = 512 * 1024 * 1024;
const NEWLINE = 10;
const FORBIDDEN_KEYS = new Set(["__proto__", "constructor", "prototype"]);

const headerSchema = z.strictObject({
  format: z.literal(FORMAT),
  network: networkSpecSchema,
  sha256: z.string().regex(/^[0-9a-f]{64}$/),
  metadata: z.record(z.string(), z.json()),
});

const invalid = (detail: string, cause?: unknown): CoppiceError =>
  new CoppiceError("CPC_MODEL_INVALID", cause === undefined ? { detail } : { detail, cause });

const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");

/** @param metadata travels with the model: what was done to the inputs, for example */
export const saveModel = (network: Network, metadata: JsonObject = {}): Uint8Array => {
  const body = Buffer.concat(network.weights().map(floatBytes));
  const header = JSON.stringify({
    format: FORMAT,
    network: network.spec,
    sha256: sha256(body),
    metadata,
  });
  return Buffer.concat([Buffer.from(`${header}\n`), body]);
};

const parseHeader = (line: Uint8Array): z.output<typeof headerSchema> => {
  let json: unknown;
  try {
    json = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(line), (key, value) => {
      if (FORBIDDEN_KEYS.has(key)) throw new Error(`the key ${key} is not allowed`);
      return value as unknown;
    });
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : "unknown";
    throw invalid(`expected a header line of JSON. Received: ${reason.slice(0, 200)}`, cause);
  }
  const parsed = headerSchema.safeParse(json);
  if (parsed.success) return parsed.data;
  const issues = parsed.error.issues.map(
    (issue) => `${issue.path.join(".") || "header"}: ${issue.message}`,
  );
  throw invalid(`the header does not fit. ${issues.join("; ").slice(0, 1000)}`);
};

const readWeights = (body: Uint8Array, shapes: readonly (readonly number[])[]): Float32Array[] => {
  // A DataView has no alignment to respect, which a slice of a buffer may not have.
  const view = new DataView(body.buffer, body.byteOffset, body.byteLength);
  let offset = 0;
  return shapes.map((shape) => {
    const weight = new Float32Array(sizeOf(shape));
    for (let index = 0; index < weight.length; index += 1) {
      const value = view.getFloat32(offset, true);
      if (!Number.isFinite(value)) throw invalid(`expected finite weights. Received: ${value}`);
      weight[index] = value;
      offset += 4;
    }
    return weight;
  });
};

export interface LoadedModel {
  /** The caller disposes it. */
  readonly network: Network;
  readonly metadata: JsonObject;
}

/** @throws CPC_MODEL_INVALID */
export const loadModel = async (bytes: Uint8Array): Promise<LoadedModel> => {
  const end = bytes.subarray(0, HEADER_BYTES_MAX).indexOf(NEWLINE);
  if (end === -1) throw invalid(`expected a header line within ${HEADER_BYTES_MAX} bytes`);
  const header = parseHeader(bytes.subarray(0, end));
  const body = bytes.subarray(end + 1);
  const shapes = weightShapes(header.network).map(({ shape }) => shape);
  const expectedBytes = shapes.reduce((sum, shape) => sum + sizeOf(shape) * 4, 0);
  if (body.length !== expectedBytes || body.length > BODY_BYTES_MAX) {
    throw invalid(
      `expected ${expectedBytes} bytes of weights, at most ${BODY_BYTES_MAX}. ` +
        `Received: ${body.length}`,
    );
  }
  if (sha256(body) !== header.sha256) throw invalid("the weights do not have the header's digest");
  const weights = readWeights(body, shapes);
  const network = await createNetwork(header.network);
  network.setWeights(weights);
  return { network, metadata: header.metadata };
};
