/**
 * Migrations are only ever added. One that was released has run on databases that we can't reach:
 * changing its text would make two schemas with one name. `migrations.sha256` pins each; a new one
 * gets its line there in the same change.
 */
import { createHash } from "node:crypto";
import { expect, test } from "vitest";
import { files, read } from "./repository.ts";

const FOLDER = "packages/store/migrations/";
const migrations = files
  .filter((file) => file.startsWith(FOLDER))
  .map((file) => file.slice(FOLDER.length));

test("no migration has changed since it was pinned, and none is missing", () => {
  const lines = migrations.map((name) => {
    const digest = createHash("sha256")
      .update(read(`${FOLDER}${name}`))
      .digest("hex");
    return `${digest}  ${name}`;
  });
  expect(lines).toEqual(read("tests/architecture/migrations.sha256").trim().split("\n"));
});

test("migrations are numbered without a gap and named after what they bring", () => {
  expect(migrations.length).toBeGreaterThan(0);
  for (const [index, name] of migrations.entries()) {
    expect(name).toMatch(/^\d{6}_[a-z0-9_]+\.sql$/);
    expect(Number(name.slice(0, 6))).toBe(index + 1);
  }
});
