/** A project as a user writes it, bundled by the real bundler and run by real children. */
import { mkdir, mkdtemp, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { bundleProject } from "@coppice/bundle";
import { afterAll, beforeAll, expect, test } from "vitest";

import { startHarness } from "../testing/harness.ts";

const CONFIG = `import { defineProject } from "@coppice/sdk";
import { main } from "./src/main.ts";
export default defineProject({ name: "demo", pipelines: [main], files: ["data/*.txt"] });
`;
const MAIN = `import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { artifactSchema, defineStep, definePipeline } from "@coppice/sdk";
import { NonRetryableError, RetryAfterError } from "@coppice/sdk";
import { z } from "zod";

const double = defineStep({
  inputs: z.object({ n: z.coerce.number() }),
  output: z.object({ twice: z.number(), file: z.string(), model: artifactSchema }),
  run: async (ctx, { n }) => {
    ctx.log.info("doubling", { n });
    const file = await readFile(join(ctx.projectDir, "data", "a.txt"), "utf8");
    const model = await ctx.artifacts.put("model", new Uint8Array([1, 2]), { kind: "model" });
    return { twice: n * 2, file, model };
  },
});
const nothing = defineStep({ run: () => undefined });
const wrong = defineStep({ output: z.object({ n: z.number() }), run: () => ({ n: "3" }) as never });
const fails = defineStep({ run: () => {
  throw new TypeError("from line seventeen or so");
} });
const useless = defineStep({ run: () => { throw new NonRetryableError("no"); } });
const later = defineStep({ run: () => { throw new RetryAfterError("busy", "30s"); } });

export const main = definePipeline({
  name: "main",
  params: z.object({}),
  steps: ({ step }) => {
    step("double", double, { with: { n: 1 } as never });
    step("nothing", nothing);
    step("wrong", wrong);
    step("fails", fails);
    step("useless", useless);
    step("later", later);
  },
});
`;

let dir = "";
let bundle: Uint8Array;

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "coppice-sdk-project-"));
  const modules = join(dir, "node_modules");
  const root = new URL("../../../node_modules", import.meta.url).pathname;
  for (const folder of [join(modules, "@coppice"), join(dir, "src"), join(dir, "data")]) {
    await mkdir(folder, { recursive: true });
  }
  await symlink(join(root, "@coppice", "sdk"), join(modules, "@coppice", "sdk"));
  await symlink(join(root, "zod"), join(modules, "zod"));
  await writeFile(join(dir, "package.json"), '{"name":"demo","type":"module"}');
  await writeFile(join(dir, "coppice.config.ts"), CONFIG);
  await writeFile(join(dir, "src", "main.ts"), MAIN);
  await writeFile(join(dir, "data", "a.txt"), "data of the project");
  bundle = (await bundleProject(dir, { conditions: ["@coppice/source"] })).bytes;
}, 30_000);
afterAll(async () => await rm(dir, { recursive: true, force: true }));

test("inputs and output pass the schemas, files and artifacts are there", async () => {
  await using house = await startHarness({ bundle });
  const inputs = { n: { kind: "value" as const, value: "21" } };
  const { outcome } = await house.run({ stepKey: "double", inputs });
  expect(outcome).toMatchObject({
    type: "succeeded",
    output: {
      twice: 42,
      file: "data of the project",
      model: { $artifact: { name: "model", kind: "model", sizeBytes: 2 } },
    },
    artifacts: [{ name: "model" }],
  });
});

test.each([
  ["nothing", { type: "succeeded", output: null }],
  ["double", { error: { code: "CPC_INVALID_INPUT" }, isRetryable: false }],
  ["wrong", { error: { code: "CPC_OUTPUT_INVALID" }, isRetryable: false }],
  ["useless", { error: { code: "CPC_NON_RETRYABLE", message: "no" }, isRetryable: false }],
  ["later", { error: { code: "CPC_STEP_FAILED" }, isRetryable: true, retryAfterMs: 30_000 }],
])("the step %s", async (stepKey, expected) => {
  await using house = await startHarness({ bundle });
  expect((await house.run({ stepKey })).outcome).toMatchObject(expected);
});

test("a stack names the user's own file and line", async () => {
  await using house = await startHarness({ bundle });
  const { outcome } = await house.run({ stepKey: "fails" });
  const line = MAIN.split("\n").findIndex((text) => text.includes("new TypeError")) + 1;
  if (outcome.type !== "failed") throw new Error("expected a failure");
  expect(outcome.error.stack).toContain(`src/main.ts:${line}`);
});
