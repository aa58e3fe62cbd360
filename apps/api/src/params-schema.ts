/**
 * A run's parameters against the pipeline's JSON Schema, by zod's own reader of JSON Schema: it reads
 * what zod wrote, fills in defaults, and makes no code at run time.
 *
 * Parameters that the schema does not name are refused unless it says `additionalProperties`: they
 * are misspelt names.
 */
import { CoppiceError, type JsonObject, type JsonValue } from "@coppice/core";
import { fieldErrors } from "@coppice/contract";
import { z } from "zod";

const REMEMBERED_MAX = 500;

/** @throws CPC_PIPELINE_INVALID where zod can't read the schema */
export const readParamsSchema = (schema: JsonObject): z.ZodType => {
  try {
    const closed = { additionalProperties: false, ...schema };
    return z.fromJSONSchema(closed);
  } catch (error) {
    throw new CoppiceError("CPC_PIPELINE_INVALID", {
      detail: `params: ${error instanceof Error ? error.message : String(error)}`,
      cause: error,
    });
  }
};

export interface ParamsChecker {
  /**
   * @param versionId what the schema belongs to: versions never change
   * @returns the parameters with defaults filled in
   * @throws CPC_INVALID_PARAMS with pointers
   */
  check(versionId: string, load: () => Promise<JsonObject>, params: JsonValue): Promise<JsonValue>;
}

export const createParamsChecker = (): ParamsChecker => {
  const known = new Map<string, z.ZodType>();
  return {
    check: async (versionId, load, params) => {
      let schema = known.get(versionId);
      if (schema === undefined) {
        schema = readParamsSchema(await load());
        if (known.size >= REMEMBERED_MAX) known.clear();
        known.set(versionId, schema);
      }
      const parsed = schema.safeParse(params);
      if (parsed.success) return parsed.data as JsonValue;
      const errors = fieldErrors(parsed.error.issues, "/params");
      throw new CoppiceError("CPC_INVALID_PARAMS", {
        detail: errors.map(({ pointer, message }) => `${pointer}: ${message}`).join("; "),
        data: { errors },
      });
    },
  };
};
