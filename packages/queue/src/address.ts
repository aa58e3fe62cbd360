/**
 * Where the doorbell hangs, and what its queues are called. An address is data: the server sends
 * it to workers when they register, so it is parsed wherever it arrives.
 */
import { createHash } from "node:crypto";
import { z } from "zod";

/** Every key of ours in Redis begins with it, so that an ACL can name them by one pattern. */
export const DEFAULT_PREFIX = "coppice";

export const DoorbellAddress = z.discriminatedUnion("kind", [
  z.object({
    kind: z.literal("redis"),
    url: z.string().regex(/^rediss?:\/\//, "expected redis:// or rediss://"),
    prefix: z
      .string()
      .regex(/^[A-Za-z0-9_-]{1,40}$/, "expected letters, digits, _ and -")
      .default(DEFAULT_PREFIX),
  }),
  z.object({
    kind: z.literal("postgres"),
    url: z.string().regex(/^postgres(ql)?:\/\//, "expected postgres:// or postgresql://"),
  }),
]);
export type DoorbellAddress = z.infer<typeof DoorbellAddress>;

/** An installation has at most so many classes; each is a queue, and for a worker a connection. */
export const MAX_CLASSES = 32;

/** Keeps names readable in Bull Board and short enough for PostgreSQL's 63 bytes. */
const MAX_NAME_LENGTH = 48;

/**
 * Class key → queue name. One class, one name: what may not stand in a name is written as its code,
 * `_` too, so that two keys never meet; what gets too long ends with its digest.
 */
export const queueName = (classKey: string): string => {
  const escaped = classKey.replaceAll(
    /[^A-Za-z0-9.,=-]/gu,
    (letter) => `_${(letter.codePointAt(0) ?? 0).toString(16)}_`,
  );
  if (escaped.length > 0 && escaped.length <= MAX_NAME_LENGTH) return escaped;
  const digest = createHash("sha256").update(classKey).digest("hex").slice(0, 20);
  // "__" can't come from the escaping above: a code always stands between its two marks.
  return `${escaped.slice(0, MAX_NAME_LENGTH - digest.length - 2)}__${digest}`;
};

/** For logs: the address without its credential. */
export const describeAddress = (address: DoorbellAddress): string => {
  const url = URL.parse(address.url);
  return url === null ? address.kind : `${url.protocol}//${url.host}${url.pathname}`;
};
