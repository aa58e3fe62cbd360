/** Columns of text. Pure: cells in, lines out. */
import { stripVTControlCharacters } from "node:util";

export interface TableOptions {
  readonly head: readonly string[];
  readonly rows: readonly (readonly string[])[];
  /** Indices of columns whose cells stand at the right. */
  readonly right?: readonly number[];
  readonly dim?: (text: string) => string;
  readonly indent?: string;
}

const widthOf = (cell: string): number => stripVTControlCharacters(cell).length;

export const formatTable = ({
  head,
  rows,
  right = [],
  dim = (text) => text,
  indent = "",
}: TableOptions): readonly string[] => {
  const widths = head.map((title, column) =>
    Math.max(widthOf(title), ...rows.map((row) => widthOf(row[column] ?? ""))),
  );
  const toLine = (cells: readonly string[]): string =>
    (
      indent +
      widths
        .map((width, column) => {
          const cell = cells[column] ?? "";
          const space = " ".repeat(width - widthOf(cell));
          return right.includes(column) ? space + cell : cell + space;
        })
        .join("  ")
    ).trimEnd();
  return [dim(toLine(head)), ...rows.map(toLine)];
};
