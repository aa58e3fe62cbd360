/**
 * The process that loads a project's code to see what it defines. It imports nothing of ours: it
 * reads plain fields of the default export, says what it found over IPC and ends, whatever the
 * user's modules left open.
 */
import { pathToFileURL } from "node:url";

const say = (message: object): void => {
  process.send?.(message, undefined, undefined, () => process.exit(0));
};

const isObject = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null;

const describeError = (error: unknown): object => {
  if (!isObject(error)) return { message: String(error) };
  const { name, code, message, stack, detail, data, hint } = error;
  return { name, code, message: String(message), stack, detail, data, hint };
};

try {
  const module: unknown = await import(pathToFileURL(process.argv[2] ?? "").href);
  const project = isObject(module) ? module["default"] : undefined;
  if (!isObject(project) || project["mark"] !== "coppice.project.1") {
    say({ type: "notAProject" });
  } else {
    const pipelines = project["pipelines"] as readonly { readonly ir: unknown }[];
    say({
      type: "project",
      name: project["name"],
      files: project["files"],
      pipelines: pipelines.map(({ ir }) => ir),
    });
  }
} catch (error) {
  say({ type: "error", error: describeError(error) });
}
