/**
 * The configuration: environment variables, read once when a process starts, parsed with zod.
 *
 * What must stay true: every problem is reported, not only the first; a secret's value never stands
 * in a report; the result is frozen to its last leaf. An empty variable counts as not set, as
 * compose files write them. A secret may come by `<NAME>_FILE` instead, read here.
 */
import { readFileSync } from "node:fs";
import { CoppiceError } from "@coppice/core";
import type { z } from "zod";

export type Environment = Readonly<Record<string, string | undefined>>;

export interface Variable<T> {
  readonly name: string;
  /** From the variable's text, undefined where it is not set; carries the description. */
  readonly schema: z.ZodType<T>;
  /** Completes "expected …". */
  readonly expected: string;
  /** Shown to people; undefined: none. */
  readonly defaultText: string | undefined;
  readonly source: "value" | "value or file" | "file";
}

type Variables = Readonly<Record<string, Variable<unknown>>>;
type ValuesOf<V extends Variables> = {
  readonly [Field in keyof V]: V[Field] extends Variable<infer T> ? T : never;
};

export interface ConfigProblem {
  readonly variable: string;
  readonly expected: string;
  readonly received: string;
}

export interface Fragment<V extends Variables = Variables> {
  readonly variables: V;
  /** Relations between variables; called where each of them is valid by itself. */
  readonly check: ((values: ValuesOf<V>) => readonly ConfigProblem[]) | undefined;
}

/** A fragment's check takes its own values, so only `never` accepts them all. */
interface AnyFragment {
  readonly variables: Variables;
  readonly check: ((values: never) => readonly ConfigProblem[]) | undefined;
}

type UnionToIntersection<U> = (U extends unknown ? (value: U) => void : never) extends (
  value: infer I,
) => void
  ? I
  : never;
type Flat<T> = { readonly [Key in keyof T]: T[Key] };
export type ConfigOf<F extends readonly AnyFragment[]> = Flat<
  UnionToIntersection<ValuesOf<F[number]["variables"]>>
>;

export const defineFragment = <const V extends Variables>(
  variables: V,
  check?: (values: ValuesOf<V>) => readonly ConfigProblem[],
): Fragment<V> => ({ variables, check });

const FILE_SUFFIX = "_FILE";
const SECRET_FILE_MAX_BYTES = 65_536;

const quoted = (text: string): string =>
  JSON.stringify(text.length > 80 ? `${text.slice(0, 80)}…` : text);

const setValue = (env: Environment, name: string): string | undefined => {
  const text = env[name]?.trim();
  return text === "" ? undefined : text;
};

/** The text of a secret's file; a problem's `received` where it can't be had. */
const readSecretFile = (path: string): { text: string } | { received: string } => {
  try {
    const bytes = readFileSync(path);
    if (bytes.byteLength > SECRET_FILE_MAX_BYTES) return { received: `${bytes.byteLength} bytes` };
    const text = bytes.toString("utf8").trim();
    return text === "" ? { received: `an empty file ${quoted(path)}` } : { text };
  } catch (error) {
    const code = error instanceof Error && "code" in error ? String(error.code) : "an error";
    return { received: `${quoted(path)}, which can't be read (${code})` };
  }
};

const readText = (
  env: Environment,
  variable: Variable<unknown>,
  problems: ConfigProblem[],
): string | undefined => {
  const text = variable.source === "file" ? undefined : setValue(env, variable.name);
  if (variable.source === "value") return text;
  const fileVariable = `${variable.name}${FILE_SUFFIX}`;
  const path = setValue(env, fileVariable);
  if (path === undefined) return text;
  if (text !== undefined) {
    const expected = `only one of ${variable.name} and ${fileVariable}`;
    problems.push({ variable: fileVariable, expected, received: "both" });
    return undefined;
  }
  const file = readSecretFile(path);
  if ("text" in file) return file.text;
  problems.push({ variable: fileVariable, expected: "a readable file", received: file.received });
  return undefined;
};

const readVariable = (
  env: Environment,
  variable: Variable<unknown>,
  problems: ConfigProblem[],
): unknown => {
  const before = problems.length;
  const text = readText(env, variable, problems);
  if (problems.length > before) return undefined;
  const parsed = variable.schema.safeParse(text);
  if (parsed.success) return parsed.data;
  const shown = variable.source === "value" ? quoted(text ?? "") : "a value that is kept secret";
  problems.push({
    variable: variable.name,
    expected: variable.expected,
    received: text === undefined ? "nothing" : shown,
  });
  return undefined;
};

const deepFreeze = <T>(value: T): T => {
  if (typeof value === "object" && value !== null && !Object.isFrozen(value)) {
    Object.freeze(value);
    for (const inner of Object.values(value)) deepFreeze(inner);
  }
  return value;
};

const invalidConfig = (problems: readonly ConfigProblem[]): CoppiceError => {
  const lines = problems.map(
    ({ variable, expected, received }) =>
      `${variable}: expected ${expected}. Received: ${received}`,
  );
  return new CoppiceError("CPC_INVALID_CONFIG", {
    detail: lines.join("; "),
    data: { problems },
    hint: "Set the variables that are named; `coppice doctor` lists all of them.",
  });
};

/** @throws CPC_INVALID_CONFIG with every problem in `data.problems` */
export const loadConfig = <const F extends readonly AnyFragment[]>(
  env: Environment,
  ...fragments: F
): ConfigOf<F> => {
  const problems: ConfigProblem[] = [];
  const config: Record<string, unknown> = {};
  for (const fragment of fragments) {
    const before = problems.length;
    const values: Record<string, unknown> = {};
    for (const [field, variable] of Object.entries(fragment.variables)) {
      values[field] = readVariable(env, variable, problems);
    }
    if (problems.length === before && fragment.check !== undefined) {
      problems.push(...fragment.check(values as never));
    }
    Object.assign(config, values);
  }
  if (problems.length > 0) throw invalidConfig(problems);
  return deepFreeze(config) as ConfigOf<F>;
};

/** This process's environment, copied: the only place that reads it. */
export const processEnvironment = (): Environment => Object.freeze({ ...process.env });

export interface ConfigRow {
  readonly name: string;
  /** Undefined where there is none. */
  readonly default: string | undefined;
  readonly description: string;
  readonly expected: string;
  readonly isRequired: boolean;
  readonly isSecret: boolean;
}

/** The rows of the table in the documentation and in `coppice doctor`. */
export const describeConfig = (...fragments: readonly AnyFragment[]): ConfigRow[] =>
  fragments.flatMap(({ variables }) =>
    Object.values(variables).map((variable) => {
      const { name, source, schema, expected } = variable;
      const shownName = { value: name, file: `${name}${FILE_SUFFIX}` } as const;
      return {
        name: source === "value or file" ? `${name} (or ${name}${FILE_SUFFIX})` : shownName[source],
        default: variable.defaultText,
        description: schema.description ?? "",
        expected,
        isRequired: !schema.safeParse(undefined).success,
        isSecret: source !== "value",
      };
    }),
  );
