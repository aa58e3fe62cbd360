/**
 * The whole list of faults, with real processes that run from `dist`: `npm run test:faults`. One
 * file per doorbell, side by side; inside a file one scenario after the other, each on what the
 * last one left.
 */
import { defineConfig } from "vitest/config";
import base from "./vitest.config.ts";

export default defineConfig({
  ...base,
  test: {
    reporters: ["default"],
    globalSetup: ["./tests/global-setup.ts"],
    include: ["tests/faults/*.test.ts"],
    testTimeout: 150_000,
    hookTimeout: 150_000,
    // What comes after a failure would run on what the failure left.
    bail: 1,
  },
});
