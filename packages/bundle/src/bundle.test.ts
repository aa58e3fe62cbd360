/** Real small projects in temporary folders, indexed and bundled from the sources of our rooms. */
import { cp, mkdir, mkdtemp, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

import { afterEach, describe, expect, test } from "vitest";

import {
  bundleProject,
  digestOf,
  indexProject,
  manifestOf,
  packBundle,
  readBundle,
  readManifest,
  unpackBundle,
  watchProject,
} from "./index.ts";

const ROOT = fileURLToPath(new URL("../../..", import.meta.url));
const options = { conditions: ["@coppice/source"] };
const folders: string[] = [];

const newFolder = async (): Promise<string> => {
  const dir = await mkdtemp(join(tmpdir(), "coppice-bundle-"));
  folders.push(dir);
  return dir;
};

afterEach(async () => {
  await Promise.all(folders.splice(0).map((dir) => rm(dir, { recursive: true, force: true })));
});

const STEP = `import { definePipeline, defineStep } from "@coppice/sdk";
import { z } from "zod";
export const double = defineStep({
  inputs: z.object({ seed: z.number() }),
  output: z.object({ twice: z.number() }),
  run: (_ctx, { seed }) => ({ twice: seed * 2 }),
});
`;
const PIPELINE = `import { definePipeline } from "@coppice/sdk";
import { z } from "zod";
import { double } from "./double.ts";
export const doubling = definePipeline({
  name: "doubling",
  params: z.object({ seed: z.number().default(7) }),
  steps: ({ params, step }) => void step("double", double, { with: { seed: params.seed } }),
});
`;
const CONFIG = `import { defineProject } from "@coppice/sdk";
import { doubling } from "./src/doubling.ts";
export default defineProject({ name: "example", pipelines: [doubling] });
`;
const GOOD = {
  "coppice.config.ts": CONFIG,
  "src/double.ts": STEP,
  "src/doubling.ts": PIPELINE,
};

/** A folder with these files and our packages where npm would put them. */
const project = async (
  files: Readonly<Record<string, string>>,
  depth: readonly string[] = [],
): Promise<string> => {
  const dir = join(await newFolder(), ...depth);
  await mkdir(join(dir, "node_modules", "@coppice"), { recursive: true });
  await symlink(join(ROOT, "packages/sdk"), join(dir, "node_modules/@coppice/sdk"));
  await symlink(join(ROOT, "node_modules/zod"), join(dir, "node_modules/zod"));
  for (const [path, text] of Object.entries(files)) {
    await mkdir(dirname(join(dir, path)), { recursive: true });
    await writeFile(join(dir, path), text);
  }
  return dir;
};

const rejection = async (promise: Promise<unknown>): Promise<Record<string, unknown>> =>
  promise.then(
    () => {
      throw new Error("expected a rejection");
    },
    (error: unknown) => error as Record<string, unknown>,
  );

describe("bundling a project", () => {
  test("gives one digest wherever the project lies, and another for other code", async () => {
    const here = await bundleProject(await project(GOOD), options);
    const there = await bundleProject(await project(GOOD, ["deep", "er"]), options);
    const other = await bundleProject(
      await project({ ...GOOD, "src/double.ts": STEP.replace("* 2", "* 3") }),
      options,
    );
    expect(there.digest).toBe(here.digest);
    expect(Buffer.compare(there.bytes, here.bytes)).toBe(0);
    expect(digestOf(here.bytes)).toBe(here.digest);
    expect(other.digest).not.toBe(here.digest);
  });

  test("names project, pipelines and sources, and no path of the machine", async () => {
    const dir = await project(GOOD);
    const { manifest, bytes } = await bundleProject(dir, options);
    expect(manifest).toEqual(manifestOf(bytes));
    expect(manifest.project).toBe("example");
    expect(manifest.pipelines.map(({ name, steps }) => [name, steps.length])).toEqual([
      ["doubling", 1],
    ]);
    expect(Object.keys(manifest.sources)).toEqual([
      "coppice.config.ts",
      "src/double.ts",
      "src/doubling.ts",
    ]);
    for (const [, content] of readBundle(bytes)) {
      expect(Buffer.from(content).toString()).not.toContain(dir);
      expect(Buffer.from(content).toString()).not.toContain("../node_modules");
    }
  });

  test("gives a module whose default export runs the user's step, and a map to it", async () => {
    const failing = STEP.replace("({ twice: seed * 2 })", '{\n    throw new Error("boom");\n  }');
    const { bytes, digest } = await bundleProject(
      await project({ ...GOOD, "src/double.ts": failing }),
      options,
    );
    const dir = join(await newFolder(), digest);
    await unpackBundle(bytes, dir, digest);
    const map = JSON.parse(await readFile(join(dir, "bundle.mjs.map"), "utf8")) as {
      sources: string[];
    };
    expect(map.sources).toContain("src/double.ts");
    const module = (await import(join(dir, "bundle.mjs"))) as {
      default: { pipelines: { steps: Map<string, { run: (...args: unknown[]) => unknown }> }[] };
    };
    expect(() => module.default.pipelines[0]?.steps.get("double")?.run({}, { seed: 1 })).toThrow(
      "boom",
    );
  });

  test("carries the files of its globs, refuses those outside and empty globs", async () => {
    const withFiles = (globs: string) => CONFIG.replace("] });", `], files: ${globs} });`);
    const dir = await project({
      ...GOOD,
      "data/a.csv": "x,y\n",
      "data/b.txt": "no",
      "coppice.config.ts": withFiles('["data/*.csv"]'),
    });
    const { bytes, manifest } = await bundleProject(dir, options);
    expect(manifest.files).toEqual(["data/a.csv"]);
    expect(Buffer.from(readBundle(bytes).get("data/a.csv") ?? []).toString()).toBe("x,y\n");

    await symlink("/etc/hostname", join(dir, "data/out.csv"));
    expect(await rejection(bundleProject(dir, options))).toMatchObject({
      code: "CPC_PATH_ESCAPES",
    });
    await writeFile(join(dir, "coppice.config.ts"), withFiles('["nothing/*"]'));
    expect(await rejection(bundleProject(dir, options))).toMatchObject({
      code: "CPC_INVALID_CONFIG",
    });
    await writeFile(join(dir, "coppice.config.ts"), withFiles('["../*"]'));
    expect(await rejection(bundleProject(dir, options))).toMatchObject({
      code: "CPC_PATH_ESCAPES",
    });
  });

  test("leaves native packages outside and notes the installed version", async () => {
    const dir = await project({
      ...GOOD,
      "src/double.ts": `import "addon";\n${STEP}`,
      "node_modules/addon/package.json": JSON.stringify({
        name: "addon",
        version: "1.2.3",
        main: "index.js",
        dependencies: { "node-gyp-build": "*" },
      }),
      "node_modules/addon/index.js": 'exports.secret = "kept outside";',
    });
    const { manifest, bytes } = await bundleProject(dir, options);
    expect(manifest.externals).toEqual({ addon: "1.2.3" });
    const code = Buffer.from(readBundle(bytes).get("bundle.mjs") ?? []).toString();
    expect(code).not.toContain("kept outside");
  });

  test("over its limit lists the largest files", async () => {
    const dir = await project({
      ...GOOD,
      "data/large.bin": "x".repeat(3_000_000),
      "data/small.bin": "x",
      "coppice.config.ts": CONFIG.replace("] });", '], files: ["data/*.bin"] });'),
    });
    const error = await rejection(bundleProject(dir, { ...options, sizeMaxBytes: 2_000_000 }));
    expect(error).toMatchObject({ code: "CPC_BUNDLE_TOO_LARGE" });
    expect(error["message"]).toMatch(
      /at most 1\.9 MiB\. Received: .*\n +2\.9 MiB {2}data\/large\.bin\n/,
    );
    expect((error["data"] as { largest: unknown[] }).largest).toHaveLength(10);
  });
});

describe("loading a project", () => {
  test("says what it defines without packing it", async () => {
    const index = await indexProject(await project(GOOD), options);
    expect(index).toMatchObject({ name: "example", pipelines: [{ name: "doubling" }], files: [] });
  });

  test("is remembered for the same code and done again for other code", async () => {
    // Every loading happens in another process, whose number tells them apart.
    const config = CONFIG.replace('"example"', "`at-${process.pid}`");
    const dir = await project({ ...GOOD, "coppice.config.ts": config });
    const first = await indexProject(dir, options);
    expect(await indexProject(dir, options)).toEqual(first);
    await writeFile(join(dir, "coppice.config.ts"), config.replace("at-", "on-"));
    expect((await indexProject(dir, options)).name).toMatch(/^on-/);
    await writeFile(join(dir, ".coppice/build/index.json"), "broken");
    expect((await indexProject(dir, options)).name).toMatch(/^on-/);
  });

  test("names file, line and column of a syntax error", async () => {
    const dir = await project({ ...GOOD, "src/double.ts": `${STEP}const = 1;\n` });
    const error = await rejection(indexProject(dir, options));
    expect(error).toMatchObject({ code: "CPC_BUNDLE_FAILED" });
    expect(error["message"]).toMatch(/src\/double\.ts:8:7: /);
  });

  test("names file and line of an error at import", async () => {
    const dir = await project({ ...GOOD, "src/double.ts": `${STEP}\nundefinedThing.call();\n` });
    const error = await rejection(indexProject(dir, options));
    expect(error).toMatchObject({ code: "CPC_INDEX_FAILED" });
    expect(error["message"]).toMatch(/src\/double\.ts:9:1: ReferenceError: undefinedThing/);
  });

  test("names both files of two pipelines with one name", async () => {
    const dir = await project({
      ...GOOD,
      "src/again.ts": PIPELINE.replace("doubling =", "again ="),
      "coppice.config.ts": CONFIG.replace("[doubling]", "[doubling, again]").replace(
        "export",
        'import { again } from "./src/again.ts";\nexport',
      ),
    });
    const error = await rejection(indexProject(dir, options));
    expect(error).toMatchObject({ code: "CPC_DUPLICATE_ID" });
    expect(error["message"]).toMatch(/"doubling": src\/doubling\.ts:4 and src\/again\.ts:4/);
  });

  test("says which package is not installed", async () => {
    const dir = await project({ ...GOOD, "src/double.ts": `import "@duckdb/node-api";\n${STEP}` });
    const error = await rejection(indexProject(dir, options));
    expect(error).toMatchObject({ code: "CPC_EXTERNAL_MISSING" });
    expect(error["hint"]).toBe("Install it: npm install @duckdb/node-api");
  });

  test("ends at its deadline and on code that ends the process", async () => {
    const hangs = await project({ ...GOOD, "src/double.ts": `${STEP}for (;;);\n` });
    const late = await rejection(indexProject(hangs, { ...options, deadlineMs: 1500 }));
    expect(late["message"]).toMatch(/took longer than 1\.5s/);
    const exits = await project({
      ...GOOD,
      "src/double.ts": `${STEP}console.error("good bye");\nprocess.exit(3);\n`,
    });
    const gone = await rejection(indexProject(exits, options));
    expect(gone["message"]).toMatch(/ended with code 3 .*\ngood bye/);
  });

  test("refuses a folder without a project and a default export that is none", async () => {
    const empty = await rejection(indexProject(await newFolder(), options));
    expect(empty).toMatchObject({ code: "CPC_PROJECT_NOT_FOUND" });
    const other = await project({ "coppice.config.ts": "export default { name: 'x' };\n" });
    const wrong = await rejection(indexProject(other, options));
    expect(wrong["message"]).toMatch(/defineProject/);
  });
});

describe("the format", () => {
  const manifest = {
    protocol: 1,
    project: "p",
    entry: "bundle.mjs",
    pipelines: [],
    externals: {},
    files: [],
    sources: {},
    node: 24,
  };
  const filesOf = (more: Readonly<Record<string, string>> = {}) =>
    new Map<string, Uint8Array>(
      Object.entries({ "manifest.json": JSON.stringify(manifest), ...more }).map(([path, text]) => [
        path,
        Buffer.from(text),
      ]),
    );

  test("packs the same bytes whatever the order of the files", () => {
    const forward = packBundle(filesOf({ a: "1", b: "2" }));
    const backward = packBundle(new Map([...filesOf({ a: "1", b: "2" })].toReversed()));
    expect(backward.digest).toBe(forward.digest);
  });

  test("unpacks what was packed, once, and is content with what is there", async () => {
    const { bytes, digest } = packBundle(filesOf({ "data/a.csv": "x" }));
    const dir = join(await newFolder(), digest);
    await Promise.all([unpackBundle(bytes, dir, digest), unpackBundle(bytes, dir, digest)]);
    expect(await readManifest(dir)).toEqual(manifest);
    expect(await readFile(join(dir, "data/a.csv"), "utf8")).toBe("x");
  });

  test("refuses other bytes than its digest names, cut ones and longer ones", async () => {
    const { bytes, digest } = packBundle(filesOf({ a: "1" }));
    const dir = join(await newFolder(), "x");
    const changed = Buffer.from(bytes);
    changed[changed.length - 1] = 0;
    for (const wrong of [
      changed,
      bytes.subarray(0, -1),
      Buffer.concat([bytes, Buffer.from("x")]),
    ]) {
      expect(await rejection(unpackBundle(wrong, dir))).toMatchObject({
        code: "CPC_BUNDLE_CORRUPT",
      });
    }
    expect(await rejection(unpackBundle(changed, dir, digest))).toMatchObject({
      code: "CPC_BUNDLE_CORRUPT",
    });
    await expect(readFile(join(dir, "a"))).rejects.toThrow("ENOENT");
  });

  test("refuses a name that is a file and a folder, and leaves nothing", async () => {
    const { bytes } = packBundle(filesOf({ a: "1", "a/b/c": "2" }));
    const dir = join(await newFolder(), "x");
    expect(await rejection(unpackBundle(bytes, dir))).toMatchObject({ code: "CPC_BUNDLE_CORRUPT" });
    await expect(readManifest(dir)).rejects.toThrow("ENOENT");
  });

  test.each(["../a", "/a", "a/../../b", "a\\b", "", "a//b", "./a", "C:/a"])(
    "refuses the path %j, whoever wrote the archive",
    async (path) => {
      expect(() => packBundle(filesOf({ [path]: "x" }))).toThrow(
        expect.objectContaining({ code: "CPC_PATH_ESCAPES" }) as Error,
      );
      const { bytes } = packBundle(filesOf({ Q: "x" }));
      const text = Buffer.from(bytes).toString("latin1");
      const forged = Buffer.from(text.replace('"Q"', JSON.stringify(path)), "latin1");
      const dir = join(await newFolder(), "x");
      expect(await rejection(unpackBundle(forged, dir))).toMatchObject({
        code: "CPC_PATH_ESCAPES",
      });
    },
  );
});

test("a watch tells of a change in a new folder and not of hidden folders", async () => {
  const dir = await project(GOOD);
  let calls = 0;
  let wake: () => void = () => undefined;
  const watch = await watchProject(dir, () => {
    calls += 1;
    wake();
  });
  const next = () =>
    new Promise<void>((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error("no change was told of")), 5000);
      wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  try {
    await mkdir(join(dir, ".coppice/build"), { recursive: true });
    await writeFile(join(dir, ".coppice/build/x"), "x");
    const made = next();
    await mkdir(join(dir, "src/new"));
    await made;
    expect(calls).toBe(1);
    const written = next();
    await cp(join(dir, "src/double.ts"), join(dir, "src/new/double.ts"));
    await written;
  } finally {
    watch.close();
  }
});
