/**
 * Takes secrets out of whatever is about to leave the process: logs and spans.
 *
 * Two nets. By name: a field that is called like a secret is replaced whole, at any depth. By look:
 * our tokens, URLs with credentials, bearer headers and `password=…` are cut out of every string,
 * wherever it stands. What must stay true: when in doubt a net takes too much; input is never
 * changed; a value that can't be read (a getter that throws, a circle) never breaks the caller.
 */
const REDACTED = "[redacted]";
const TEXT_MAX = 32_768;
const DEPTH_MAX = 8;

const SECRET_FIELD =
  /(?:authorization|cookies?|token|password|passwd|pwd|secret|credentials?|(?:api|access|private)key)$/;

const PATTERNS: readonly (readonly [pattern: RegExp, replacement: string])[] = [
  // The password of a database URL may hold slashes, spaces and even "@" where nobody encoded it.
  // Its length is bounded, or a long line of half URLs would take seconds.
  [/((?:postgres(?:ql)?|rediss?):\/\/[^\s:@/]*):[^@\n]{0,1000}@(?:\S*@)?/gi, `$1:${REDACTED}@`],
  [/cpc_[A-Za-z0-9_-]+/g, `cpc_${REDACTED}`],
  [/:\/\/(?![^\s@/]*:\[redacted\]@)[^\s@/]+@/g, `://${REDACTED}@`],
  [/(bearer\s+)[\w.~+/=-]{8,}/gi, `$1${REDACTED}`],
  [/((?:password|passwd|secret|token|signature|credential)=)[^&\s"']+/gi, `$1${REDACTED}`],
  [/([?&]code=)[^&\s"']+/gi, `$1${REDACTED}`],
  [/("\w*(?:token|password|secret|authorization|cookie)"\s*:\s*")[^"]*/gi, `$1${REDACTED}`],
];

export const scrubText = (text: string): string => {
  // Cut before, so that no text costs much, and after, so that no secret is left half at the edge.
  let scrubbed = text.length > 2 * TEXT_MAX ? text.slice(0, 2 * TEXT_MAX) : text;
  for (const [pattern, replacement] of PATTERNS) {
    scrubbed = scrubbed.replaceAll(pattern, replacement);
  }
  if (scrubbed.length <= TEXT_MAX) return scrubbed;
  return `${scrubbed.slice(0, TEXT_MAX)}… [cut from ${text.length} characters]`;
};

const isSecretField = (name: string): boolean =>
  SECRET_FIELD.test(name.toLowerCase().replaceAll(/[-_]/g, ""));

const scrubError = (error: Error, seen: ReadonlySet<object>): Record<string, unknown> => {
  const fields: Record<string, unknown> = { type: error.name };
  if ("code" in error) fields["code"] = scrubValue(error.code, seen);
  fields["message"] = scrubText(error.message);
  if (error.stack !== undefined) fields["stack"] = scrubText(error.stack);
  if ("data" in error) fields["data"] = scrubValue(error.data, seen);
  if (error.cause !== undefined) fields["cause"] = scrubValue(error.cause, seen);
  if (error instanceof AggregateError) fields["errors"] = scrubValue(error.errors, seen);
  return fields;
};

const scrubObject = (value: object, seen: ReadonlySet<object>): unknown => {
  if (seen.has(value)) return "[circular]";
  if (seen.size >= DEPTH_MAX) return "[too deep]";
  const inside = new Set(seen).add(value);
  if (value instanceof Error) return scrubError(value, inside);
  if (ArrayBuffer.isView(value)) return `[${value.byteLength} bytes]`;
  if (Array.isArray(value)) return value.map((item) => scrubValue(item, inside));
  if (value instanceof Map || value instanceof Set) return scrubValue([...value], inside);
  if ("toJSON" in value && typeof value.toJSON === "function") {
    return scrubValue(value.toJSON(), inside);
  }
  return scrubRecord(value, inside);
};

const scrubRecord = (value: object, seen: ReadonlySet<object>): Record<string, unknown> => {
  const fields: Record<string, unknown> = {};
  for (const [name, field] of Object.entries(value)) {
    const isHidden = field != null && typeof field !== "boolean" && isSecretField(name);
    fields[scrubText(name)] = isHidden ? REDACTED : scrubValue(field, seen);
  }
  return fields;
};

const scrubValue = (value: unknown, seen: ReadonlySet<object>): unknown => {
  if (typeof value === "string") return scrubText(value);
  if (typeof value === "bigint") return value.toString();
  if (typeof value === "symbol" || typeof value === "function") return `[${typeof value}]`;
  if (typeof value !== "object" || value === null) return value;
  try {
    return scrubObject(value, seen);
  } catch {
    return "[unreadable]";
  }
};

export const scrubFields = (fields: Readonly<Record<string, unknown>>): Record<string, unknown> => {
  try {
    return scrubRecord(fields, new Set([fields]));
  } catch {
    return { fields: "[unreadable]" };
  }
};
