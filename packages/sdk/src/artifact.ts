/**
 * An artifact inside a step's inputs and outputs: a reference to immutable bytes by digest.
 * In JSON it is `{ "$artifact": … }`, which is how the server knows what a run refers to. The
 * schema says the same as the contract's `artifactRefSchema` (a test holds them together); it is
 * written again so that a bundle does not carry the whole wire protocol.
 */
import type { JsonObject } from "@coppice/core";
import { z } from "zod";

export interface ArtifactRef {
  readonly $artifact: {
    readonly sha256: string;
    readonly sizeBytes: number;
    readonly name: string;
    readonly kind: string;
    readonly metadata: JsonObject;
  };
}

export const artifactSchema: z.ZodType<ArtifactRef, ArtifactRef> = z.strictObject({
  $artifact: z.strictObject({
    sha256: z.string().regex(/^[0-9a-f]{64}$/),
    sizeBytes: z.number().int().min(0),
    name: z.string().max(200),
    kind: z.string().max(64),
    metadata: z.record(z.string(), z.json()),
  }),
});
