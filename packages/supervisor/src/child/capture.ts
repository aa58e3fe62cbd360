/**
 * Sends what is written to `process.stdout` and `process.stderr`, and so by `console`, along the
 * wire: one order for everything that an attempt says. What native code writes to the descriptors
 * themselves reaches the supervisor by their own pipes.
 */
import process from "node:process";
import { StringDecoder } from "node:string_decoder";

export const captureOutput = (log: (text: string) => void): void => {
  for (const stream of [process.stdout, process.stderr]) {
    const decoder = new StringDecoder("utf8");
    stream.write = (
      chunk: Uint8Array | string,
      encodingOrDone?: BufferEncoding | ((error?: Error | null) => void),
      done?: (error?: Error | null) => void,
    ): boolean => {
      log(typeof chunk === "string" ? chunk : decoder.write(Buffer.from(chunk)));
      const callback = typeof encodingOrDone === "function" ? encodingOrDone : done;
      if (callback !== undefined) queueMicrotask(() => callback(null));
      return true;
    };
  }
};
