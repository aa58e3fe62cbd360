/**
 * The Redis credential that a worker gets. It can listen to our queues and nothing else: no key
 * outside the prefix, no listing of keys, no settings, no flush. Derived by running workers
 * against it; a test proves both halves.
 */
import { CoppiceError } from "@coppice/core";

/** What BullMQ's scripts call on our keys when a worker claims, completes and recovers jobs. */
const KEY_COMMANDS = [
  "@read",
  "@write",
  "-@dangerous",
  "-@blocking",
  // Functions, which count as writing and are everybody's; the scripts we need are named below.
  "-@scripting",
  "-randomkey",
  "-scan",
  "-dbsize",
];
/** `info` tells BullMQ the server's version. */
const CONNECTION_COMMANDS = [
  "bzpopmin",
  "eval",
  "evalsha",
  "info",
  "ping",
  "time",
  "quit",
  "select",
  "client|setname",
  "client|id",
];

/**
 * The arguments of Redis's ACL command: `redis.call("ACL", ...doorbellAclRules(…))`.
 * @param password without spaces
 */
export const doorbellAclRules = (prefix: string, user: string, password: string): string[] => {
  if (/\s/.test(`${prefix}${user}${password}`) || user === "" || password === "") {
    throw new CoppiceError("CPC_INVALID_INPUT", {
      detail: "expected a user and a password without spaces.",
    });
  }
  return [
    "SETUSER",
    user,
    "reset",
    "on",
    `>${password}`,
    `~${prefix}:*`,
    "-@all",
    ...KEY_COMMANDS.map((rule) => (rule.startsWith("-") ? rule : `+${rule}`)),
    ...CONNECTION_COMMANDS.map((command) => `+${command}`),
  ];
};
