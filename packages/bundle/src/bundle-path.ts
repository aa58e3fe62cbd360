/** The one rule for names of files in a bundle: they stay in the folder they are unpacked to. */
import { CoppiceError } from "@coppice/core";

/**
 * @throws CPC_PATH_ESCAPES unless it is relative, with slashes, without `.`, `..` or empty parts
 */
export const requireInnerPath = (path: string): string => {
  const isSafe =
    path.length > 0 &&
    path.length <= 1000 &&
    !/[\\\0:]/.test(path) &&
    path.split("/").every((part) => part !== "" && part !== "." && part !== "..");
  if (isSafe) return path;
  throw new CoppiceError("CPC_PATH_ESCAPES", {
    detail:
      "expected a relative path such as data/a.csv. " +
      `Received: ${JSON.stringify(path.slice(0, 200))}`,
  });
};
