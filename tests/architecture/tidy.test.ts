/**
 * What compiler, linter and formatter can't say about a file: its place, its header, its name.
 * Every check names the files that break it.
 */
import { describe, expect, test } from "vitest";
import {
  files,
  isTest,
  type Line,
  linesMatching,
  read,
  rootEntries,
  sources,
} from "./repository.ts";

const ROOT_ENTRIES = new Set([
  ".biome.json",
  ".ci",
  ".docker",
  ".dockerignore",
  ".editorconfig",
  ".env.example",
  ".gitattributes",
  ".github",
  ".gitignore",
  ".npmrc",
  ".nvmrc",
  ".oxlintrc.json",
  "ARCHITECTURE.md",
  "CHANGELOG.md",
  "CONTRIBUTING.md",
  "LICENSE",
  "NOTICE",
  "README.md",
  "SECURITY.md",
  "apps",
  "docker-compose.yml",
  "package-lock.json",
  "package.json",
  "packages",
  "tests",
  "tsconfig.json",
  "turbo.json",
]);

const TEXT = /\.(?:ts|js|mjs|json|md|sql|yml|yaml|html|css|txt|example)$|Dockerfile$|^\.ci\/run$/;
const texts = files.filter((file) => TEXT.test(file));
/** This file holds the patterns that it looks for. */
const others = texts.filter((file) => file !== "tests/architecture/tidy.test.ts");

describe("the tree", () => {
  test("has nothing at its top but what is on the list", () => {
    expect(rootEntries.filter((entry) => !ROOT_ENTRIES.has(entry))).toEqual([]);
  });

  test("has no file that is named after what it is not", () => {
    const vague = /(?:^|\/)(?:utils?|helpers?|types|common|misc|shared)(?:\.[^/]*)?$/;
    expect(sources.filter((file) => vague.test(file))).toEqual([]);
  });

  test("has no file over 500 lines", () => {
    const long = sources.filter((file) => read(file).split("\n").length > 501);
    expect(long).toEqual([]);
  });

  test("has no temporary or editor's file", () => {
    expect(files.filter((file) => /\.(?:tmp|orig|rej|bak|swp)(?:\.|$)|~$/.test(file))).toEqual([]);
  });
});

describe("a file", () => {
  test("opens with a header that says what it is", () => {
    // A test beside its subject is described by its titles.
    const described = sources.filter((file) => !/^[^/]+\/[^/]+\/src\/.*\.test\.ts$/.test(file));
    const bare = described.filter((file) => {
      const text = read(file).replace(/^#!.*\n/, "");
      return !text.startsWith("/**");
    });
    expect(bare).toEqual([]);
  });

  test("opens with a comment, if it is a migration", () => {
    const migrations = files.filter((file) => file.endsWith(".sql"));
    expect(migrations.length).toBeGreaterThan(0);
    expect(migrations.filter((file) => !read(file).startsWith("--"))).toEqual([]);
  });

  test("leaves nothing for later", () => {
    expect(linesMatching(others, /\b(?:TODO|FIXME|XXX|HACK)\b/)).toEqual([]);
  });

  test("names no path of a developer's machine and no package registry", () => {
    const paths = /(?:^|[\s"'`(=:])\/(?:work|root|Users|home(?!\/node\b))\/\w/;
    const registries = /registry\.npmjs|npmmirror|registry\.yarnpkg|artifactory|verdaccio/i;
    expect(linesMatching(others, paths)).toEqual([]);
    expect(linesMatching(others, registries)).toEqual([]);
  });

  test("re-exports by name", () => {
    expect(linesMatching(sources, /^\s*export \*/)).toEqual([]);
  });
});

describe("the pure rooms", () => {
  const pure = sources.filter(
    (file) => /^packages\/(?:core|pipeline)\/src\//.test(file) && !isTest(file),
  );

  test("ask no clock and no generator but the ones they are given", () => {
    expect(pure.length).toBeGreaterThan(10);
    expect(
      linesMatching(pure, /\bnew Date\(\s*\)|\bDate\.now\(|\bMath\.random\(|\bperformance\./),
    ).toEqual([]);
  });
});

describe("a test", () => {
  const tests = others.filter((file) => file.endsWith(".test.ts"));

  test("is never the only one, and never left for later", () => {
    const put = /\b(?:test|it|describe|suite)(?:\.\w+)*\.(?:only|todo|fails)\b/;
    expect(linesMatching(tests, put)).toEqual([]);
  });

  test("is skipped only where something says why", () => {
    // `context.skip("reason")` and `context.skip(condition, "reason")` say it themselves; `skipIf(condition)` by the name of its condition.
    const skip = /\.skip\b(?!\((?:[`"']|\w+\)|[^)]+, [`"']))/;
    expect(linesMatching(tests, skip)).toEqual([]);
    expect(linesMatching(tests, /\.(?:skipIf|runIf)\(\s*(?:true|false)\s*\)/)).toEqual([]);
  });

  test("has a title of its own, in words", () => {
    const problems = tests.flatMap((file) => {
      const title = /^\s*(?:test|it)(?:\.\w+(?:\([^\n]*?\))?)*\(\s*(["'`])((?:(?!\1).)+)\1/gm;
      const titles = [...read(file).matchAll(title)].map((match) => match[2] ?? "");
      const doubled = titles.filter((text, index) => titles.indexOf(text) !== index);
      const terse = titles.filter((text) => text.trim().split(/\s+/).length < 2);
      return [...doubled, ...terse].map((text) => `${file}: ${text}`);
    });
    expect(problems).toEqual([]);
  });

  test("waits for conditions, and sleeps only where the line above says why", () => {
    const sleep = /^\s*await (?:sleep|delay|pause)\(|^\s*await new Promise\(.*setTimeout\(/;
    const isExplained = ({ file, number }: Line): boolean =>
      /^\s*\/\//.test(read(file).split("\n")[number - 2] ?? "");
    expect(linesMatching(tests, sleep, isExplained)).toEqual([]);
  });
});
