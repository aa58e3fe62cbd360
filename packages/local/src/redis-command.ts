/**
 * One command sent to our own Redis, its first answer line read: enough to ask whether it is there and
 * to empty it. Everything else about Redis belongs to `queue`.
 */
import { connect } from "node:net";

export interface RedisAddress {
  readonly port: number;
  readonly password: string;
}

const encode = (words: readonly string[]): string =>
  [`*${words.length}`, ...words.flatMap((word) => [`$${Buffer.byteLength(word)}`, word])]
    .concat("")
    .join("\r\n");

/** The first line of the answer, such as "+PONG" or "-LOADING …"; undefined: nobody answered. */
export const askRedis = async (
  address: RedisAddress,
  ...words: readonly string[]
): Promise<string | undefined> =>
  new Promise((resolve) => {
    let answer = "";
    const socket = connect({ host: "127.0.0.1", port: address.port });
    const end = (line: string | undefined): void => {
      socket.destroy();
      resolve(line);
    };
    socket.setTimeout(5000, () => end(undefined));
    socket.setEncoding("utf8");
    socket.once("error", () => end(undefined));
    socket.once("close", () => resolve(undefined));
    socket.once("connect", () => {
      socket.write(encode(["AUTH", address.password]) + encode(words));
    });
    socket.on("data", (text: string) => {
      answer += text;
      const lines = answer.split("\r\n");
      const [authenticated, line] = lines;
      if (lines.length < 2 || authenticated === undefined) return;
      if (!authenticated.startsWith("+OK")) end(authenticated);
      else if (lines.length >= 3) end(line);
    });
  });
