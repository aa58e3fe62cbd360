/**
 * The database folder on disk: where it lies, how it is made, and its secrets.
 *
 * `dataDir` holds `credentials.json` (0600) and `cluster`, PostgreSQL's own folder, or a link to it
 * where the server's user could not enter `dataDir`. What must stay true: a cluster appears under its
 * name only when it is complete (roles and databases included); the doorbell's role can connect to
 * doorbell databases and to nothing else.
 */
import { createHash, randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { chown, lstat, mkdir, readFile, readlink, rename, rm } from "node:fs/promises";
import { realpath, symlink, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { CoppiceError, type Logger } from "@coppice/core";
import { jsonFields } from "./json-fields.ts";
import type { PostgresBinaries } from "./postgres-binaries.ts";
import { runTool, type ServerAccount, type ToolResult } from "./run-tool.ts";
import { canEnter, isRoot, serverAccount } from "./server-account.ts";
import { makeOwnedFolder, requireOwnedFolder, sharedFolderPath } from "./shared-folder.ts";

export const SUPERUSER = "coppice_admin";
export const MAIN_DATABASE = "coppice";
export const DOORBELL_DATABASE = "coppice_doorbell";

export interface ClusterPlace {
  /** PostgreSQL's own folder; may not exist yet. */
  readonly cluster: string;
  readonly account: ServerAccount | undefined;
  /** The cluster was found by its name outside, while the project's pointer to it was gone. */
  readonly isLeftover: boolean;
}

export interface Credentials {
  readonly port: number;
  readonly superuserPassword: string;
  readonly mainPassword: string;
  readonly doorbellPassword: string;
}

/** Finds the cluster's folder and the user it belongs to; an existing one stays where it is. */
export const placeCluster = async (dataDir: string, logger: Logger): Promise<ClusterPlace> => {
  await mkdir(dataDir, { recursive: true });
  const pointer = join(dataDir, "cluster");
  const found = await lstat(pointer).catch(() => undefined);
  if (!isRoot()) return { cluster: pointer, account: undefined, isLeftover: false };
  const account = await accountOf(pointer);
  const isPointed = found?.isSymbolicLink() === true;
  let cluster = pointer;
  let isLeftover = false;
  if (isPointed) {
    cluster = await readlink(pointer);
  } else if (found === undefined && !(await canEnter(account, dataDir))) {
    const digest = createHash("sha256")
      .update(await realpath(dataDir))
      .digest("hex");
    cluster = sharedFolderPath(`coppice-cluster-${digest.slice(0, 16)}`);
    await symlink(cluster, pointer);
    isLeftover = existsSync(cluster);
  }
  if (existsSync(cluster)) await requireOwnedFolder(cluster, account.uid);
  logger.info({ user: account.name, cluster }, "PostgreSQL refuses root: it runs as another user");
  return { cluster, account, isLeftover };
};

const accountOf = async (pointer: string): Promise<ServerAccount> => {
  const account = await serverAccount();
  if (account === undefined) throw new Error("Only root runs PostgreSQL as another user.");
  const cluster = await realpath(pointer).catch(() => undefined);
  const owner = cluster === undefined ? undefined : await lstat(cluster);
  // A cluster that an ordinary user made before stays that user's.
  if (owner === undefined || owner.uid === 0 || owner.uid === account.uid) return account;
  return { name: `${owner.uid}`, uid: owner.uid, gid: owner.gid };
};

const secret = (): string => randomBytes(24).toString("base64url");

const credentialsFile = (dataDir: string): string => join(dataDir, "credentials.json");

export const saveCredentials = async (dataDir: string, value: Credentials): Promise<void> => {
  const file = credentialsFile(dataDir);
  const fresh = `${file}.new`;
  await rm(fresh, { force: true });
  await writeFile(fresh, `${JSON.stringify(value, undefined, 2)}\n`, { mode: 0o600, flag: "wx" });
  await rename(fresh, file);
};

export const readCredentials = async (dataDir: string): Promise<Credentials | undefined> => {
  const file = credentialsFile(dataDir);
  let text: string;
  try {
    text = await readFile(file, "utf8");
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "ENOENT") return undefined;
    throw new CoppiceError("CPC_EMBEDDED_START_FAILED", {
      detail: `The passwords of the database can't be read from ${file}.`,
      hint: "Run as the user who made the project's .coppice folder.",
      cause: error,
    });
  }
  const fields = jsonFields(text);
  const word = (name: string): string => {
    const value = fields[name];
    if (typeof value === "string" && value !== "") return value;
    throw new CoppiceError("CPC_EMBEDDED_START_FAILED", {
      detail: `${file} should hold a text under ${name}, and does not.`,
    });
  };
  return {
    port: Number(fields["port"]) || 0,
    superuserPassword: word("superuserPassword"),
    mainPassword: word("mainPassword"),
    doorbellPassword: word("doorbellPassword"),
  };
};

/** The doorbell's role meets only databases whose names begin like its own. */
const HBA = `# Written by Coppice: loopback, passwords, and the doorbell's role kept apart.
host  "/^${DOORBELL_DATABASE}"  ${DOORBELL_DATABASE}  127.0.0.1/32  scram-sha-256
host  all  ${DOORBELL_DATABASE}  127.0.0.1/32  reject
host  all  all  127.0.0.1/32  scram-sha-256
`;

/** One statement a line: the single-user server takes each line as one. */
const bootstrapSql = (credentials: Credentials): string =>
  [
    `CREATE ROLE ${MAIN_DATABASE} LOGIN PASSWORD '${credentials.mainPassword}'`,
    `CREATE ROLE ${DOORBELL_DATABASE} LOGIN PASSWORD '${credentials.doorbellPassword}'`,
    `CREATE DATABASE ${MAIN_DATABASE} OWNER ${MAIN_DATABASE}`,
    `CREATE DATABASE ${DOORBELL_DATABASE} OWNER ${DOORBELL_DATABASE}`,
    ...["postgres", "template1", "template0", MAIN_DATABASE, DOORBELL_DATABASE].map(
      (database) => `REVOKE ALL ON DATABASE ${database} FROM PUBLIC`,
    ),
    "",
  ].join("\n");

const requireSuccess = (program: string, result: ToolResult): void => {
  if (result.exitCode === 0) return;
  throw new CoppiceError("CPC_EMBEDDED_START_FAILED", {
    // The end of what it said; passwords travel by file and standard input, never in its output.
    detail: `${program} ended with ${result.exitCode}: ${result.stderr.trim().slice(-400)}`,
  });
};

export interface NewCluster {
  readonly dataDir: string;
  readonly place: ClusterPlace;
  readonly binaries: PostgresBinaries;
  readonly port: number;
  /** False only for databases that need not survive the machine's own end: those of tests. */
  readonly isSynced: boolean;
}

/** Makes the cluster, its roles and databases, and the credentials beside it. */
export const createCluster = async (wanted: NewCluster): Promise<Credentials> => {
  const { dataDir, place, binaries, port } = wanted;
  const { account } = place;
  const fresh = `${place.cluster}.new`;
  const passwordFile = `${place.cluster}.password`;
  await rm(fresh, { recursive: true, force: true });
  await rm(passwordFile, { force: true });
  const uid = account?.uid ?? process.getuid?.() ?? 0;
  const gid = account?.gid ?? process.getgid?.() ?? 0;
  await makeOwnedFolder(fresh, uid, gid);
  const credentials: Credentials = {
    port,
    superuserPassword: secret(),
    mainPassword: secret(),
    doorbellPassword: secret(),
  };
  try {
    await writeFile(passwordFile, credentials.superuserPassword, { mode: 0o600, flag: "wx" });
    if (account !== undefined) await chown(passwordFile, uid, gid);
    const initdbArgs = [
      `--pgdata=${fresh}`,
      `--username=${SUPERUSER}`,
      `--pwfile=${passwordFile}`,
      "--auth=scram-sha-256",
      "--encoding=UTF8",
      "--locale=C",
      "--locale-provider=builtin",
      "--builtin-locale=C.UTF-8",
      ...(wanted.isSynced ? [] : ["--no-sync"]),
    ];
    requireSuccess("initdb", await runTool(binaries.initdb, initdbArgs, { account, cwd: fresh }));
    await rm(join(fresh, "pg_hba.conf"), { force: true });
    await writeFile(join(fresh, "pg_hba.conf"), HBA, { mode: 0o600, flag: "wx" });
    if (account !== undefined) await chown(join(fresh, "pg_hba.conf"), uid, gid);
    const fsync = `fsync=${wanted.isSynced ? "on" : "off"}`;
    const single = ["--single", "-D", fresh, "-c", fsync, "-c", "exit_on_error=on", "postgres"];
    const input = bootstrapSql(credentials);
    requireSuccess(
      basename(binaries.postgres),
      await runTool(binaries.postgres, single, { account, cwd: fresh, input }),
    );
    await saveCredentials(dataDir, credentials);
    await rename(fresh, place.cluster);
  } finally {
    await rm(passwordFile, { force: true });
    await rm(fresh, { recursive: true, force: true });
  }
  return credentials;
};
