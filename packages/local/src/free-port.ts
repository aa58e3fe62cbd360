/**
 * Ports on 127.0.0.1. A port found free may be taken a moment later: whoever binds it must be ready
 * to be refused.
 */
import { createServer } from "node:net";

const tryPort = async (port: number): Promise<number | undefined> =>
  new Promise((resolve) => {
    const server = createServer();
    server.unref();
    server.once("error", () => resolve(undefined));
    server.listen({ host: "127.0.0.1", port, exclusive: true }, () => {
      const address = server.address();
      const bound = typeof address === "object" && address !== null ? address.port : undefined;
      server.close(() => resolve(bound));
    });
  });

export const isPortFree = async (port: number): Promise<boolean> => (await tryPort(port)) === port;

/** A port that nobody listens on right now. */
export const freePort = async (): Promise<number> => {
  const port = await tryPort(0);
  if (port === undefined) throw new Error("The system gives no free port on 127.0.0.1.");
  return port;
};
