/**
 * The kinds of values that a variable may have: each a zod schema over text and the words that say
 * what was expected. Texts come from outside, so every kind says exactly what it accepts.
 */
import { z } from "zod";
import type { Variable } from "./config.ts";

/** What a kind of value is; `variable` and its sisters add a name and a place to it. */
export interface Kind<T> {
  readonly schema: z.ZodType<T, string>;
  readonly expected: string;
}

export const text: Kind<string> = { schema: z.string().min(1), expected: "a text" };

export const wholeNumber = (min: number, max: number): Kind<number> => ({
  schema: z
    .string()
    .regex(/^\d{1,15}$/)
    .transform(Number)
    .pipe(z.number().min(min).max(max)),
  expected: `a whole number from ${min} to ${max}`,
});

export const choice = <const T extends string>(values: readonly T[]): Kind<T> => ({
  schema: z.string().pipe(z.enum(values)),
  expected: `one of ${values.join(", ")}`,
});

export const urlWith = (schemes: readonly string[]): Kind<string> => ({
  schema: z.string().refine((value) => {
    const url = URL.canParse(value) ? new URL(value) : undefined;
    return url !== undefined && schemes.includes(url.protocol.slice(0, -1));
  }),
  expected: `a URL that begins with ${schemes.map((scheme) => `${scheme}://`).join(" or ")}`,
});

/** Parts between commas, trimmed; empty parts are dropped. */
const commaParts = z.string().transform((value) =>
  value
    .split(",")
    .map((part) => part.trim())
    .filter((part) => part !== ""),
);

export const commaList = (part: RegExp, expected: string): Kind<readonly string[]> => ({
  schema: commaParts.pipe(z.array(z.string().regex(part))),
  expected: `${expected}, separated by commas`,
});

/** `name=value` pairs; a name given twice is refused. */
export const labelPairs: Kind<Readonly<Record<string, string>>> = {
  schema: commaParts
    .pipe(z.array(z.string().regex(/^[A-Za-z0-9._/-]{1,63}=[A-Za-z0-9._-]{0,63}$/)))
    .transform((parts) =>
      parts.map((part): [string, string] => {
        const at = part.indexOf("=");
        return [part.slice(0, at), part.slice(at + 1)];
      }),
    )
    .refine((pairs) => new Set(pairs.map(([name]) => name)).size === pairs.length)
    .transform((pairs) => Object.fromEntries(pairs)),
  expected: "labels such as zone=a,disk=ssd, each name once",
};

/** Never handed to a step: they change the process itself or hold our secrets. */
const FORBIDDEN_ENV = /^(?:COPPICE_|LD_|DYLD_|NODE_OPTIONS$)/i;

export interface AllowedEnv {
  readonly project: string;
  readonly name: string;
}

export const allowedEnv: Kind<readonly AllowedEnv[]> = {
  schema: commaParts
    .pipe(z.array(z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._-]*:[A-Za-z_][A-Za-z0-9_]*$/)))
    .transform((parts) =>
      parts.map((part): AllowedEnv => {
        const at = part.indexOf(":");
        return { project: part.slice(0, at), name: part.slice(at + 1) };
      }),
    )
    .refine((entries) => entries.every(({ name }) => !FORBIDDEN_ENV.test(name))),
  expected:
    "pairs such as project:NAME, separated by commas; not COPPICE_*, LD_*, DYLD_*, NODE_OPTIONS",
};

/** A variable with a default, which is given as the text that a person would write. */
export const withDefault = <T>(
  name: string,
  kind: Kind<T>,
  defaultText: string,
  description: string,
): Variable<T> => ({
  name,
  schema: z
    .string()
    .optional()
    .transform((value) => value ?? defaultText)
    .pipe(kind.schema)
    .describe(description),
  expected: kind.expected,
  defaultText: defaultText === "" ? undefined : defaultText,
  source: "value",
});

export const optional = <T>(
  name: string,
  kind: Kind<T>,
  description: string,
): Variable<T | undefined> => ({
  name,
  schema: kind.schema.optional().describe(description),
  expected: kind.expected,
  defaultText: undefined,
  source: "value",
});

export const requiredSecret = <T>(
  name: string,
  kind: Kind<T>,
  description: string,
): Variable<T> => ({
  name,
  schema: kind.schema.describe(description),
  expected: kind.expected,
  defaultText: undefined,
  source: "value or file",
});

export const optionalSecret = <T>(
  name: string,
  kind: Kind<T>,
  description: string,
  source: "value or file" | "file" = "value or file",
): Variable<T | undefined> => ({ ...optional(name, kind, description), source });
