/**
 * What never changes, read once: pipeline versions with their graphs, parameters of runs, classes.
 *
 * What must stay true: nothing in here can be stale, because nothing in here is ever updated. Each cache
 * is bounded; what falls out is read again.
 */
import {
  CoppiceError,
  type JsonValue,
  type PipelineVersionId,
  type ProjectId,
  type RunId,
} from "@coppice/core";
import { buildGraph, classKeyOf, type Graph, pipelineSchema } from "@coppice/pipeline";
import {
  insertClass,
  loadClasses,
  loadRunFacts,
  loadVersion,
  type Queryable,
  type WorkerClass,
} from "@coppice/store";

export interface VersionFacts {
  readonly id: PipelineVersionId;
  readonly projectId: ProjectId;
  readonly projectName: string;
  readonly name: string;
  readonly version: number;
  readonly bundleDigest: string;
  readonly graph: Graph;
  /** By step index. */
  readonly classIds: readonly number[];
}

export interface RunFacts {
  readonly params: JsonValue;
  readonly traceparent: string | null;
}

export interface Facts {
  version(db: Queryable, id: PipelineVersionId): Promise<VersionFacts>;
  /** Params and trace of these runs; those of a new run can be put in before it is stored. */
  runs(db: Queryable, ids: readonly RunId[]): Promise<ReadonlyMap<RunId, RunFacts>>;
  rememberRun(id: RunId, facts: RunFacts): void;
  classById(id: number): WorkerClass | undefined;
  classes(): readonly WorkerClass[];
  refreshClasses(db: Queryable): Promise<void>;
}

const VERSIONS_MAX = 1000;
const RUNS_MAX = 20_000;
/** Larger parameters are read again rather than kept: they are few, and a cache of them could be gigabytes. */
const KEPT_PARAMS_CHARS_MAX = 8 * 1024;
/** At most this many classes, hence queues, in one installation. */
const CLASSES_MAX = 32;

/** A map that forgets what was put in first; recency doesn't matter for facts of living runs. */
export class BoundedMap<Key, Value> extends Map<Key, Value> {
  readonly #sizeMax: number;

  constructor(sizeMax: number) {
    super();
    this.#sizeMax = sizeMax;
  }

  override set(key: Key, value: Value): this {
    super.set(key, value);
    if (this.size > this.#sizeMax) {
      const oldest = this.keys().next();
      if (!oldest.done) this.delete(oldest.value);
    }
    return this;
  }
}

interface Classes {
  all(): readonly WorkerClass[];
  refresh(db: Queryable): Promise<void>;
  idFor(
    db: Queryable,
    resources: { readonly gpu: number; readonly labels: Readonly<Record<string, string>> },
  ): Promise<number>;
}

const openClasses = (): Classes => {
  let classes: readonly WorkerClass[] = [];
  const refresh = async (db: Queryable): Promise<void> => {
    classes = await loadClasses(db);
  };
  const find = (key: string): WorkerClass | undefined => classes.find((entry) => entry.key === key);
  return {
    all: () => classes,
    refresh,
    idFor: async (db, resources) => {
      const key = classKeyOf(resources);
      // Whoever took the same number at the same time wins it: try for the next as long as there is one.
      for (let round = 0; round <= CLASSES_MAX; round += 1) {
        const found = find(key);
        if (found !== undefined) return found.id;
        if (round > 0 && classes.length >= CLASSES_MAX) break;
        await insertClass(db, { key, labels: resources.labels, gpu: resources.gpu });
        await refresh(db);
      }
      const inUse = classes.map((entry) => entry.key).join("; ");
      throw new CoppiceError("CPC_TOO_MANY_CLASSES", {
        detail: `The ${CLASSES_MAX} classes in use: ${inUse}. Wanted: ${key}.`,
      });
    },
  };
};

const readVersion = async (
  db: Queryable,
  classes: Classes,
  id: PipelineVersionId,
): Promise<VersionFacts> => {
  const stored = await loadVersion(db, id);
  if (stored === undefined) {
    throw new CoppiceError("CPC_PIPELINE_NOT_FOUND", { detail: `Version ${id} does not exist.` });
  }
  const graph = buildGraph(pipelineSchema.parse(stored.ir));
  const classIds: number[] = [];
  for (const step of graph.pipeline.steps) classIds.push(await classes.idFor(db, step.resources));
  return {
    id,
    projectId: stored.projectId as ProjectId,
    projectName: stored.projectName,
    name: stored.name,
    version: stored.version,
    bundleDigest: stored.bundleDigest,
    graph,
    classIds,
  };
};

export const openFacts = (): Facts => {
  const versions = new BoundedMap<PipelineVersionId, VersionFacts>(VERSIONS_MAX);
  const runs = new BoundedMap<RunId, RunFacts>(RUNS_MAX);
  const classes = openClasses();
  const remember = (id: RunId, facts: RunFacts): void => {
    if (JSON.stringify(facts.params).length <= KEPT_PARAMS_CHARS_MAX) runs.set(id, facts);
  };
  return {
    version: async (db, id) => {
      const known = versions.get(id);
      if (known !== undefined) return known;
      const facts = await readVersion(db, classes, id);
      versions.set(id, facts);
      return facts;
    },
    runs: async (db, ids) => {
      const found = new Map<RunId, RunFacts>();
      const missing: RunId[] = [];
      for (const id of ids) {
        const known = runs.get(id);
        if (known === undefined) missing.push(id);
        else found.set(id, known);
      }
      if (missing.length === 0) return found;
      for (const row of await loadRunFacts(db, missing)) {
        const facts = { params: row.params as JsonValue, traceparent: row.traceparent };
        remember(row.id as RunId, facts);
        found.set(row.id as RunId, facts);
      }
      return found;
    },
    rememberRun: remember,
    classById: (id) => classes.all().find((entry) => entry.id === id),
    classes: classes.all,
    refreshClasses: classes.refresh,
  };
};
