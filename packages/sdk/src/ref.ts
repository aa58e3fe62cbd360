/**
 * References: how a pipeline's definition speaks of values that exist only while a run runs.
 *
 * What must stay true: a reference carries no value, only where one will come from; reading a field
 * of a reference gives a reference to that field; using one as if it were a value is an error at
 * compile time and, past the compiler, at definition time. Two types are carried: what the value is
 * when everything upstream succeeded (`STRICT`), and what it is where a rule lets the step run
 * without that (`LOOSE`).
 */
import type { ValueSource } from "@coppice/pipeline";

declare const STRICT: unique symbol;
declare const LOOSE: unique symbol;

/** The two types of a reference; both are covariant, neither exists at run time. */
export interface RefOf<Strict, Loose = Strict> {
  readonly [STRICT]: Strict;
  readonly [LOOSE]: Loose;
}
/** Any reference whose value has this type when everything upstream succeeded. */
export interface StrictRef<T> {
  readonly [STRICT]: T;
}
/** Any reference whose value has this type even where something upstream did not succeed. */
export interface LooseRef<T> {
  readonly [LOOSE]: T;
}

type FieldKeys<T> = T extends readonly unknown[] ? Extract<keyof T, `${number}`> : keyof T & string;
type Field<T, K extends keyof NonNullable<T>> =
  | NonNullable<T>[K]
  | (Extract<T, null | undefined> extends never ? never : undefined);

/** A parameter, a run's fact or a map's item: there whatever became of other steps. */
export type Ref<T, Loose = T> = RefOf<T, Loose> &
  (NonNullable<T> extends object
    ? { readonly [K in FieldKeys<NonNullable<T>>]-?: Ref<Field<T, K>> }
    : unknown);

/** What a step returned; undefined under a rule that does not wait for its success. */
export type OutputRef<T> = RefOf<T, T | undefined> &
  (NonNullable<T> extends object
    ? { readonly [K in FieldKeys<NonNullable<T>>]-?: OutputRef<Field<T, K>> }
    : unknown);

/**
 * What all items of a mapped step returned, in order. A field of it is the list of that field of
 * every item: `perMonth.output.rows` is a reference to all items' `rows`.
 */
export type ListRef<T> = RefOf<T[], (T | null)[]> &
  (NonNullable<T> extends object
    ? { readonly [K in FieldKeys<NonNullable<T>>]-?: ListRef<Field<T, K>> }
    : unknown);

/** Registered, so that two copies of this module understand each other's references. */
const SOURCE = Symbol.for("coppice.ref.source");

const describe = (source: ValueSource): string => {
  switch (source.from) {
    case "literal":
      return "a literal";
    case "param":
      return ["params", ...source.path].join(".");
    case "output":
      return [source.step, "output", ...source.path].join(".");
    case "item":
      return ["item", ...source.path].join(".");
    case "run":
      return `run.${source.field}`;
  }
};

const deeper = (source: ValueSource, key: string): ValueSource => {
  if (source.from === "literal" || source.from === "run") {
    throw new TypeError(`${describe(source)} has no field ${JSON.stringify(key)}.`);
  }
  return { ...source, path: [...source.path, key] };
};

const refuseUse = (source: ValueSource) => (): never => {
  throw new TypeError(
    `${describe(source)} is a reference: it has no value while the pipeline is being defined. ` +
      "Pass it to a step with `with` and compute there.",
  );
};

/** The caller names the type that the source will have. */
export const makeRef = <R>(source: ValueSource): R =>
  new Proxy(Object.create(null) as object, {
    get: (_target, key) => {
      if (key === SOURCE) return source;
      if (key === Symbol.toPrimitive) return refuseUse(source);
      // A promise's resolution looks for `then`; a reference is not one.
      if (typeof key === "symbol" || key === "then") return undefined;
      if (key === "toJSON") return refuseUse(source);
      return makeRef<object>(deeper(source, key));
    },
    has: (_target, key) => key === SOURCE,
    set: () => false,
  }) as R;

/** Where a reference's value comes from; undefined for anything that is not a reference. */
export const sourceOf = (value: unknown): ValueSource | undefined =>
  typeof value === "object" && value !== null && SOURCE in value
    ? (value as { readonly [SOURCE]: ValueSource })[SOURCE]
    : undefined;
