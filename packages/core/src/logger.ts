/**
 * What every room may ask of a logger. `telemetry` builds the real one; tests take `silentLogger`.
 *
 * Objects first, one constant sentence second, so that messages can be searched for. An error
 * stands under `err`. Never a secret, never a user's value.
 */
export interface LogFn {
  (fields: Readonly<Record<string, unknown>>, message: string): void;
}

export interface Logger {
  readonly debug: LogFn;
  readonly info: LogFn;
  readonly warn: LogFn;
  readonly error: LogFn;
  child(fields: Readonly<Record<string, unknown>>): Logger;
}

const nothing: LogFn = () => undefined;

export const silentLogger: Logger = {
  debug: nothing,
  info: nothing,
  warn: nothing,
  error: nothing,
  child: () => silentLogger,
};
