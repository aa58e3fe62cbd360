/**
 * What each room shows to the others, by name. A name that appears or goes changes
 * `public-api.txt`, so that it is seen in review: `npm test -- -u tests/architecture` writes it anew.
 */
import { expect, test } from "vitest";
import { manifestOf, read, rooms } from "./repository.ts";

/** The names in `export { … } from "…"` and `export const …`, types with their word. */
const exportsOf = (file: string): string[] => {
  const text = read(file).replaceAll(/\/\*[\s\S]*?\*\/|\/\/.*$/gm, "");
  const lists = [...text.matchAll(/export\s+(type\s+)?\{([^}]*)\}/g)].flatMap(
    ([, allTypes = "", list = ""]) =>
      list
        .split(",")
        .map((name) => name.trim())
        .filter((name) => name !== "")
        .map((name) => (allTypes === "" ? name : `type ${name}`)),
  );
  const declared = [
    ...text.matchAll(/export\s+(?:declare\s+)?(const|function|class|type|interface)\s+(\w+)/g),
  ].map(([, kind, name]) => (kind === "type" || kind === "interface" ? `type ${name}` : `${name}`));
  return [...lists, ...declared].map((name) => name.replace(/^(type )?.* as /, "$1"));
};

const byName = (left: string, right: string): number =>
  left.replace("type ", "") < right.replace("type ", "") ? -1 : 1;

test("each room exports exactly the names that are written down", async () => {
  const pages = rooms.flatMap((room) => {
    const { name, exports = {} } = manifestOf(room);
    return Object.entries(exports).flatMap(([subpath, target]) => {
      const source = (target as Record<string, string>)["@coppice/source"];
      if (source === undefined) return [];
      const names = exportsOf(`${room}/${source}`).toSorted(byName);
      expect(new Set(names).size, `${name} exports a name twice`).toBe(names.length);
      const lines = names.map((each) => `  ${each}\n`).join("");
      return [`${name}${subpath.slice(1)}\n${lines}`];
    });
  });
  await expect(pages.join("\n")).toMatchFileSnapshot("public-api.txt");
});
