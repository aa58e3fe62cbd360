/** A user's project in a folder of its own, with our packages where npm would put them. */
import { readFileSync } from "node:fs";
import { chmod, mkdir, symlink, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { tempDir } from "@coppice/testing";
import { ROOT } from "./program.ts";

export type Files = Readonly<Record<string, string>>;

export interface Project extends AsyncDisposable {
  readonly dir: string;
  write(files: Files): Promise<void>;
}

export const newProject = async (files: Files): Promise<Project> => {
  const folder = await tempDir("project");
  // As root, PostgreSQL runs as another user, who must be able to walk through here.
  await chmod(folder.path, 0o711);
  const dir = folder.path;
  const write = async (changed: Files): Promise<void> => {
    for (const [path, text] of Object.entries(changed)) {
      await mkdir(dirname(join(dir, path)), { recursive: true });
      await writeFile(join(dir, path), text);
    }
  };
  await mkdir(join(dir, "node_modules/@coppice"), { recursive: true });
  await symlink(join(ROOT, "packages/sdk"), join(dir, "node_modules/@coppice/sdk"));
  await symlink(join(ROOT, "node_modules/zod"), join(dir, "node_modules/zod"));
  await write(files);
  return { dir, write, [Symbol.asyncDispose]: async () => folder.remove() };
};

/** The README's first pipeline, as a reader copies it. */
export const readmePipeline = (): string => {
  const readme = readFileSync(join(ROOT, "README.md"), "utf8");
  const block = /```ts\n(\/\/ coppice\.config\.ts\n.*?)```/s.exec(readme)?.[1];
  if (block === undefined) throw new Error("The README has no block for coppice.config.ts.");
  return block;
};
