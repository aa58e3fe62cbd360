/**
 * Where in the user's code something was defined, for the message about a duplicate. The stack is
 * only taken here; reading it, which maps it to the sources, waits until somebody needs it.
 */
const SITE = Symbol.for("coppice.definition.site");

/** An object that remembers the place from which `caller` was called. */
export const defineSite = (caller: (...args: never[]) => unknown): object => {
  const holder: { stack?: string } = {};
  // Beyond V8 there is no captureStackTrace; then the place stays unknown.
  Error.captureStackTrace?.(holder, caller);
  return Object.defineProperty({}, SITE, { value: holder });
};

/** `src/pipelines/a.ts:12` or "an unknown place". */
export const siteOf = (site: object): string => {
  const holder = (site as { readonly [SITE]?: { readonly stack?: string } })[SITE];
  const frame = holder?.stack?.split("\n").find((line) => /^\s+at /.test(line));
  const place = frame?.match(/\(?((?:file:\/\/)?[^()\s]+):(\d+):\d+\)?$/);
  return place === null || place === undefined
    ? "an unknown place"
    : `${(place[1] ?? "").replace(/^file:\/\//, "")}:${place[2]}`;
};
