/** `coppice-scheduler`: runs until SIGTERM or SIGINT. */
import { isCoppiceError } from "@coppice/core";
import { createLogger, loadConfig, logConfig, processEnvironment } from "@coppice/telemetry";
import { serve } from "./serve.ts";

const untilSignal = async (): Promise<string> =>
  await new Promise((resolve) => {
    for (const signal of ["SIGTERM", "SIGINT"] as const) {
      process.once(signal, () => resolve(signal));
    }
  });

export const main = async (): Promise<void> => {
  const env = processEnvironment();
  const { logLevel: level } = loadConfig(env, logConfig);
  const logger = createLogger({ name: "scheduler", level });
  try {
    const close = await serve(env, logger);
    logger.info({ signal: await untilSignal() }, "scheduler is closing");
    await close();
    process.exit(0);
  } catch (error) {
    logger.error({ err: error }, "scheduler ended with an error");
    const text = error instanceof Error ? error.message : String(error);
    const hint = isCoppiceError(error) && error.hint !== undefined ? `\n${error.hint}` : "";
    process.stderr.write(`${isCoppiceError(error) ? `${error.code}: ` : ""}${text}${hint}\n`);
    process.exit(1);
  }
};
