/**
 * The ordinary test run: every room's own tests from source, then what no single room can prove.
 * Nothing has to be built for the first part; `.ci/ready.mjs` builds for the second.
 */
import { defineConfig } from "vitest/config";

// Not "module": Node would load the extensionless ESM that some packages keep for bundlers.
const conditions = ["@coppice/source", "node", "development|production"];

export default defineConfig({
  root: new URL("..", import.meta.url).pathname,
  ssr: { resolve: { conditions, externalConditions: ["@coppice/source"] } },
  environments: {
    __vitest__: { resolve: { conditions, externalConditions: ["@coppice/source"] } },
  },
  test: {
    reporters: ["default"],
    // Real servers on a busy machine: the first test of a run waits for their start.
    testTimeout: 20_000,
    hookTimeout: 30_000,
    // Most of the time tests wait for leases and processes, not for the processor.
    maxWorkers: 2,
    globalSetup: ["./tests/global-setup.ts"],
    projects: [
      {
        extends: true,
        test: {
          name: "rooms",
          include: ["packages/*/src/**/*.test.ts", "apps/*/src/**/*.test.ts"],
        },
      },
      {
        extends: true,
        test: { name: "house", include: ["tests/{architecture,e2e}/**/*.test.ts"] },
      },
    ],
  },
});
