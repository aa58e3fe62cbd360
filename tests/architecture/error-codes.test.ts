/**
 * The catalogue of error codes agrees with the code: nothing carries a code that it lacks, and it
 * has none that nothing carries.
 */
import { ERRORS } from "@coppice/core";
import { expect, test } from "vitest";
import { files, isTest, read, sources } from "./repository.ts";

const CATALOGUE = "packages/core/src/errors.ts";
const PATTERN = /\bCPC_[A-Z][A-Z0-9_]*[A-Z0-9]\b/g;

const codesIn = (among: readonly string[]): Map<string, string> =>
  new Map(among.flatMap((file) => (read(file).match(PATTERN) ?? []).map((code) => [code, file])));

const product = sources.filter((file) => !isTest(file) && file !== CATALOGUE);
const documents = files.filter((file) => /\.(?:md|sql)$/.test(file));

test("every code that a program or a document names is in the catalogue", () => {
  const unknown = [...codesIn([...product, ...documents])].filter(
    ([code]) => !Object.hasOwn(ERRORS, code),
  );
  expect(unknown).toEqual([]);
});

test("every code of the catalogue is carried by something", () => {
  const carried = codesIn(product);
  expect(Object.keys(ERRORS).filter((code) => !carried.has(code))).toEqual([]);
});

test("every code says what happened in one sentence, and a hint is one too", () => {
  const odd = Object.entries(ERRORS).filter(
    ([, entry]) =>
      !/^[A-Z].*\.$/.test(entry.summary) || ("hint" in entry && !/[.>`]$/.test(entry.hint)),
  );
  expect(odd).toEqual([]);
});
