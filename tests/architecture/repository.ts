/**
 * The repository as the architecture tests see it: every file that belongs to it, by its path from
 * the root. What git ignores is left out by the same names that `.gitignore` holds.
 */
import { readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

export const root = fileURLToPath(new URL("../..", import.meta.url));

/** The folders of `.gitignore`, and git's own. */
const IGNORED = new Set([".git", "node_modules", "dist", ".turbo", ".coppice", "coverage"]);

const walk = (folder: string): string[] =>
  readdirSync(`${root}${folder}`, { withFileTypes: true }).flatMap((entry) => {
    const path = `${folder}${entry.name}`;
    if (IGNORED.has(entry.name) || entry.name.endsWith(".log")) return [];
    return entry.isDirectory() ? walk(`${path}/`) : [path];
  });

/** All files, sorted. */
export const files: readonly string[] = walk("").toSorted();

export const rootEntries: readonly string[] = [
  ...new Set(files.map((file) => file.split("/")[0] ?? "")),
];

export const read = (path: string): string => readFileSync(`${root}${path}`, "utf8");

/** The rooms, as `packages/core` or `apps/api`. */
export const rooms: readonly string[] = files
  .filter((file) => /^(?:apps|packages)\/[^/]+\/package\.json$/.test(file))
  .map((file) => file.slice(0, -"/package.json".length));

export interface Manifest {
  readonly name: string;
  readonly version: string;
  readonly license: string;
  readonly type: string;
  readonly private?: boolean;
  readonly exports?: Readonly<Record<string, unknown>>;
  readonly bin?: Readonly<Record<string, string>>;
  readonly dependencies?: Readonly<Record<string, string>>;
  readonly devDependencies?: Readonly<Record<string, string>>;
  readonly optionalDependencies?: Readonly<Record<string, string>>;
}

export const manifestOf = (room: string): Manifest =>
  JSON.parse(read(`${room}/package.json`)) as Manifest;

export const isTest = (file: string): boolean =>
  file.endsWith(".test.ts") || file.startsWith("tests/") || /^[^/]+\/[^/]+\/testing\//.test(file);

/** Every program text of ours. */
export const sources: readonly string[] = files.filter(
  (file) => /^(?:apps|packages|tests)\//.test(file) && /\.(?:ts|js|mjs)$/.test(file),
);

export interface Line {
  readonly file: string;
  readonly number: number;
  readonly text: string;
}

/** Lines of these files that match, as `file:number  text`, for a readable failure. */
export const linesMatching = (
  among: readonly string[],
  pattern: RegExp,
  isAllowed: (line: Line) => boolean = () => false,
): string[] =>
  among.flatMap((file) =>
    read(file)
      .split("\n")
      .map((text, index) => ({ file, number: index + 1, text }))
      .filter((line) => pattern.test(line.text) && !isAllowed(line))
      .map(({ number, text }) => `${file}:${number}  ${text.trim()}`),
  );

/** What a file imports, by the specifier as written. */
export const importsOf = (file: string): string[] =>
  [...read(file).matchAll(/(?:^|\n)\s*(?:import|export)\b[^;"'`=(]*?["']([^"'\n]+)["']/g)]
    .concat([...read(file).matchAll(/\bimport\(\s*["']([^"'\n]+)["']/g)])
    .flatMap((match) => match[1] ?? []);
