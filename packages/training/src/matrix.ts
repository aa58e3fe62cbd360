/** Rows of numbers, as `@coppice/data` reads them: one Float32Array, row by row. */
import { CoppiceError } from "@coppice/core";

export interface Matrix {
  /** `values[row * columnCount + column]` */
  readonly values: Float32Array;
  readonly rowCount: number;
  readonly columnCount: number;
}

/** Inputs and one label per row. */
export interface Dataset {
  readonly inputs: Matrix;
  readonly labels: Float32Array;
}

export const requireMatrix = (matrix: Matrix, columnCount: number, what: string): void => {
  const isWhole = matrix.values.length === matrix.rowCount * matrix.columnCount;
  if (isWhole && matrix.columnCount === columnCount && matrix.rowCount > 0) return;
  throw new CoppiceError("CPC_INVALID_INPUT", {
    detail:
      `expected ${what} to have rows of ${columnCount} numbers. ` +
      `Received: ${matrix.values.length} numbers as ${matrix.rowCount} rows ` +
      `of ${matrix.columnCount}`,
  });
};

export const requireDataset = (dataset: Dataset, columnCount: number, what: string): void => {
  requireMatrix(dataset.inputs, columnCount, what);
  if (dataset.labels.length !== dataset.inputs.rowCount) {
    throw new CoppiceError("CPC_INVALID_INPUT", {
      detail:
        `expected one label per row of ${what}. ` +
        `Received: ${dataset.labels.length} labels for ${dataset.inputs.rowCount} rows`,
    });
  }
  for (const values of [dataset.inputs.values, dataset.labels]) {
    const at = values.findIndex((value) => !Number.isFinite(value));
    if (at === -1) continue;
    throw new CoppiceError("CPC_INVALID_INPUT", {
      detail: `expected only finite numbers in ${what}. Received: ${values[at]} at position ${at}`,
    });
  }
};
