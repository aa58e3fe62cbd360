/** `--param k=v` and `--params '{…}'` as a run's parameters; the server checks them. */
import { CoppiceError, isJsonObject, type JsonObject, type JsonValue } from "@coppice/core";

const tryJson = (text: string): JsonValue | undefined => {
  try {
    return JSON.parse(text) as JsonValue;
  } catch {
    return undefined;
  }
};

/** Whether the pipeline's schema wants text under this name, so that `7` stays "7". */
const wantsText = (schema: JsonObject | undefined, name: string): boolean => {
  const properties = schema?.["properties"];
  const property = isJsonObject(properties) ? properties[name] : undefined;
  return isJsonObject(property) && property["type"] === "string";
};

/**
 * @param pairs `name=value`; the value is JSON where it can be read as JSON, otherwise text
 * @param whole a JSON object that the pairs are laid over
 * @param schema of the parameters, where the pipeline is known
 * @throws CPC_INVALID_INPUT
 */
export const parseParams = (
  pairs: readonly string[],
  whole: string | undefined,
  schema: JsonObject | undefined,
): JsonObject => {
  const base = whole === undefined ? {} : tryJson(whole);
  if (!isJsonObject(base)) {
    throw new CoppiceError("CPC_INVALID_INPUT", {
      detail: `expected a JSON object for --params. Received: ${whole?.slice(0, 100)}`,
    });
  }
  const params: Record<string, JsonValue> = { ...base };
  for (const pair of pairs) {
    const at = pair.indexOf("=");
    if (at <= 0) {
      throw new CoppiceError("CPC_INVALID_INPUT", {
        detail: `expected --param name=value. Received: ${pair}`,
      });
    }
    const name = pair.slice(0, at);
    const text = pair.slice(at + 1);
    params[name] = wantsText(schema, name) ? text : (tryJson(text) ?? text);
  }
  return params;
};
