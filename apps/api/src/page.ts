/**
 * Pages by key: one row more than asked for tells whether there is a next page; the cursor is the
 * last row's key, in a form that nobody is meant to read.
 */
import { CoppiceError } from "@coppice/core";
import type { z } from "zod";

export const PAGE_DEFAULT = 50;

export const encodeCursor = (key: unknown): string =>
  Buffer.from(JSON.stringify(key)).toString("base64url");

/** @throws CPC_INVALID_INPUT where the cursor is not one that we gave */
export const decodeCursor = <S extends z.ZodType>(
  cursor: string | undefined,
  schema: S,
): z.output<S> | null => {
  if (cursor === undefined) return null;
  try {
    return schema.parse(JSON.parse(Buffer.from(cursor, "base64url").toString("utf8")));
  } catch (error) {
    throw new CoppiceError("CPC_INVALID_INPUT", {
      detail: "expected a cursor as `nextCursor` gave it",
      cause: error,
    });
  }
};

/** @param rows up to `limit` + 1 of them */
export const toPage = <R, T>(
  rows: readonly R[],
  limit: number,
  view: (row: R) => T,
  keyOf: (row: R) => unknown,
): { items: T[]; nextCursor: string | null } => {
  const shown = rows.slice(0, limit);
  const last = shown.at(-1);
  const nextCursor = rows.length > limit && last !== undefined ? encodeCursor(keyOf(last)) : null;
  return { items: shown.map(view), nextCursor };
};

/** A list that is always whole. */
export const whole = <T>(items: T[]): { items: T[]; nextCursor: null } => ({
  items,
  nextCursor: null,
});
