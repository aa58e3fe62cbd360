/**
 * The training room on its real engine. `Math.random` is seeded here, as a worker does per
 * attempt.
 */
import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { type Rng, seededRng } from "@coppice/core";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import {
  areaUnderCurve,
  baseRate,
  brierScore,
  calibration,
  countTensors,
  createNetwork,
  type Dataset,
  encodedColumns,
  encodeRows,
  evaluateBinary,
  fitNetwork,
  learnEncoder,
  loadModel,
  logisticRegression,
  logLoss,
  type Network,
  type NetworkSpecInput,
  parseEncoder,
  saveModel,
  selectBackend,
  weightsDigest,
  withSeed,
} from "./index.ts";

const original = Math.random;
const seedMathRandom = (seed: string): void => {
  const rng = seededRng(seed);
  Math.random = () => rng.next();
};
let tensorsBefore = 0;
beforeEach(async () => {
  await selectBackend("cpu");
  tensorsBefore = countTensors();
});
afterEach(() => {
  Math.random = original;
  // Every test disposes what it makes, so this holds each of them to it.
  const left = countTensors() - tensorsBefore;
  if (left !== 0) throw new Error(`expected no tensor to stay behind. Received: ${left}`);
});

/** Two inputs, yes where they have the same sign: no linear model can tell. */
const checkerboard = (rowCount: number, rng: Rng = seededRng("rows")): Dataset => {
  const values = Float32Array.from({ length: rowCount * 2 }, () => rng.next() * 2 - 1);
  const labels = Float32Array.from({ length: rowCount }, (_, row) =>
    (values[row * 2] ?? 0) * (values[row * 2 + 1] ?? 0) > 0 ? 1 : 0,
  );
  return { inputs: { values, rowCount, columnCount: 2 }, labels };
};

const SPEC: NetworkSpecInput = {
  inputs: 2,
  layers: [
    { kind: "dense", units: 16, activation: "relu", l2: 1e-4 },
    { kind: "batchNormalization" },
    { kind: "dropout", rate: 0.1 },
    { kind: "dense", units: 1, activation: "sigmoid" },
  ],
};

const withNetwork = async <T>(spec: NetworkSpecInput, use: (network: Network) => Promise<T>) => {
  const network = await createNetwork(spec);
  try {
    return await use(network);
  } finally {
    network.dispose();
  }
};

const OPTIONS = {
  loss: "binaryCrossentropy",
  epochsMax: 3,
  batchSize: 32,
  learningRate: 0.01,
} as const;

const trainedDigest = (seed: string): Promise<string> => {
  seedMathRandom(seed);
  return withNetwork(SPEC, async (network) => {
    await fitNetwork(network, { ...OPTIONS, train: checkerboard(300) });
    return weightsDigest(network);
  });
};

describe("training", () => {
  test("the same seed gives the same weights, also in a warm process", async () => {
    const first = await trainedDigest("7");
    expect(await trainedDigest("7")).toBe(first);
    expect(await trainedDigest("8")).not.toBe(first);
  });

  test("a seed of one's own counts whatever Math.random gave before", async () => {
    const train = () =>
      withNetwork(SPEC, async (network) => {
        await fitNetwork(network, { ...OPTIONS, train: checkerboard(100) });
        return weightsDigest(network);
      });
    seedMathRandom("1");
    const generator = Math.random;
    const first = await withSeed(7, train);
    expect(Math.random).toBe(generator);
    seedMathRandom("2");
    expect(await withSeed(7, train)).toBe(first);
    await withSeed(7, async () => {
      await expect(withSeed(8, train)).rejects.toMatchObject({ code: "CPC_INVALID_INPUT" });
    });
  });

  test("a network learns what a logistic regression can't", async () => {
    seedMathRandom("7");
    const train = checkerboard(1000);
    const test = checkerboard(500, seededRng("others"));
    const losses: number[] = [];
    for (const spec of [SPEC, logisticRegression(2)]) {
      await withNetwork(spec, async (network) => {
        await fitNetwork(network, { ...OPTIONS, train, epochsMax: 15 });
        losses.push(logLoss(network.predict(test.inputs), test.labels));
      });
    }
    expect(losses[0]).toBeLessThan(0.3);
    expect(losses[1]).toBeGreaterThan(0.65);
  });

  test("every epoch is reported once and in order, and a slow listener is waited for", async () => {
    seedMathRandom("7");
    const seen: number[] = [];
    const result = await withNetwork(SPEC, (network) =>
      fitNetwork(network, {
        ...OPTIONS,
        train: checkerboard(100),
        tune: checkerboard(50, seededRng("tune")),
        onEpoch: async ({ epoch, tuneLoss }) => {
          await new Promise((resolve) => setImmediate(resolve));
          expect(tuneLoss).toBeGreaterThan(0);
          seen.push(epoch);
        },
      }),
    );
    expect(seen).toEqual([1, 2, 3]);
    expect(result).toMatchObject({ bestEpoch: 3, stoppedBy: "epochsMax" });
  });

  test("patience ends it and brings back the best epoch's weights", async () => {
    seedMathRandom("7");
    const tune = checkerboard(60, seededRng("tune"));
    await withNetwork(logisticRegression(2), async (network) => {
      const byEpoch: string[] = [];
      const result = await fitNetwork(network, {
        ...OPTIONS,
        learningRate: 0.5,
        train: checkerboard(60),
        tune,
        epochsMax: 200,
        patience: 3,
        onEpoch: () => void byEpoch.push(weightsDigest(network)),
      });
      expect(result.stoppedBy).toBe("patience");
      expect(result.epochs.length).toBe(result.bestEpoch + 3);
      expect(weightsDigest(network)).toBe(byEpoch[result.bestEpoch - 1]);
      const best = result.epochs[result.bestEpoch - 1]?.tuneLoss;
      expect(logLoss(network.predict(tune.inputs), tune.labels)).toBeCloseTo(best ?? 0, 6);
    });
  });

  test("an abort is heard within an epoch and leaves nothing behind", async () => {
    seedMathRandom("7");
    const controller = new AbortController();
    const train = checkerboard(200_000);
    let epochs = 0;
    await withNetwork(SPEC, async (network) => {
      const fit = fitNetwork(network, {
        ...OPTIONS,
        train,
        epochsMax: 50,
        signal: controller.signal,
        onEpoch: () => void (epochs += 1),
      });
      setImmediate(() => controller.abort(new Error("cancelled by the test")));
      await expect(fit).rejects.toThrow("cancelled by the test");
      expect(epochs).toBe(0);
      await expect(
        fitNetwork(network, { ...OPTIONS, train, signal: controller.signal }),
      ).rejects.toThrow("cancelled by the test");
    });
  });

  test("rows that do not fit the network are refused by name", async () => {
    await withNetwork(SPEC, async (network) => {
      const { inputs, labels } = checkerboard(10);
      const bad: Dataset[] = [
        { inputs: { ...inputs, columnCount: 1, rowCount: 20 }, labels },
        { inputs: { ...inputs, rowCount: 11 }, labels },
        { inputs, labels: labels.subarray(1) },
        { inputs: { ...inputs, values: inputs.values.map(() => Number.NaN) }, labels },
      ];
      for (const train of bad) {
        await expect(fitNetwork(network, { ...OPTIONS, train })).rejects.toMatchObject({
          code: "CPC_INVALID_INPUT",
          message: expect.stringContaining("the training rows"),
        });
      }
    });
  });

  test("a loss that explodes is an error, not a model", async () => {
    seedMathRandom("7");
    const { inputs, labels } = checkerboard(64);
    const values = inputs.values.map((value) => value * 1e38);
    const spec: NetworkSpecInput = { inputs: 2, layers: [{ kind: "dense", units: 1 }] };
    await withNetwork(spec, async (network) => {
      await expect(
        fitNetwork(network, {
          ...OPTIONS,
          loss: "meanSquaredError",
          train: { inputs: { ...inputs, values }, labels },
        }),
      ).rejects.toMatchObject({ code: "CPC_STEP_FAILED" });
    });
  });

  test("a disposed network says so", async () => {
    const network = await createNetwork(SPEC);
    network.dispose();
    network.dispose();
    expect(() => network.weights()).toThrow(expect.objectContaining({ code: "CPC_INVALID_INPUT" }));
  });

  test("an unknown backend is refused; the engine prints no advertisement", async () => {
    await expect(selectBackend("webgpu")).rejects.toMatchObject({ code: "CPC_NO_DEVICE" });
    const room = JSON.stringify(new URL("index.ts", import.meta.url).href);
    const script = `
      const { createNetwork } = await import(${room});
      const network = await createNetwork({ inputs: 1, layers: [{ kind: "dense", units: 1 }] });
      network.predict({ values: new Float32Array(3), rowCount: 3, columnCount: 1 });
      process.stdout.write("done");`;
    const child = spawnSync(
      process.execPath,
      ["--conditions=@coppice/source", "--input-type=module", "--eval", script],
      { cwd: fileURLToPath(new URL(".", import.meta.url)), encoding: "utf8" },
    );
    expect({ stdout: child.stdout, stderr: child.stderr }).toEqual({ stdout: "done", stderr: "" });
  });
});

describe("model files", () => {
  const inputs = checkerboard(50).inputs;
  const saved = (metadata = {}): Promise<{ bytes: Uint8Array; predictions: Float32Array }> => {
    seedMathRandom("7");
    return withNetwork(SPEC, async (network) => {
      await fitNetwork(network, { ...OPTIONS, epochsMax: 1, train: checkerboard(100) });
      return { bytes: saveModel(network, metadata), predictions: network.predict(inputs) };
    });
  };
  const split = (bytes: Uint8Array) => {
    const end = bytes.indexOf(10);
    const header: unknown = JSON.parse(Buffer.from(bytes.subarray(0, end)).toString());
    return { header: header as Record<string, unknown>, body: bytes.subarray(end + 1) };
  };
  const join = (header: unknown, body: Uint8Array) =>
    Buffer.concat([
      Buffer.from(typeof header === "string" ? header : JSON.stringify(header)),
      Buffer.from("\n"),
      body,
    ]);

  test("a saved model loads with the same predictions, digest and metadata", async () => {
    const { bytes, predictions } = await saved({ columns: ["x", "y"] });
    // An odd offset, as a slice of a larger buffer may have.
    const shifted = new Uint8Array(bytes.length + 1);
    shifted.set(bytes, 1);
    const { network, metadata } = await loadModel(shifted.subarray(1));
    expect(network.predict(inputs)).toEqual(predictions);
    expect(metadata).toEqual({ columns: ["x", "y"] });
    expect(Buffer.compare(saveModel(network, metadata), bytes)).toBe(0);
    network.dispose();
  });

  test("hostile bytes are refused, each by what is wrong with it", async () => {
    const { bytes } = await saved();
    const { header, body } = split(bytes);
    const network = header["network"] as { inputs: number; layers: unknown[] };
    const huge = { kind: "dense", units: 65_536, activation: "relu", l2: 0 };
    const flipped = Uint8Array.from(body);
    flipped[0] = (flipped[0] ?? 0) ^ 1;
    const text = JSON.stringify(header);
    const cases: Record<string, Uint8Array> = {
      empty: new Uint8Array(),
      "no header": Buffer.from("PK\u0003\u0004"),
      "not UTF-8": Buffer.from([0xff, 0xfe, 10]),
      "no JSON": join("{", body),
      "a list": join([], body),
      "another format": join({ ...header, format: "coppice-model-2" }, body),
      "an unknown key": join({ ...header, weightsManifest: [{ paths: ["/etc/passwd"] }] }, body),
      "an unknown class": join(
        { ...header, network: { inputs: 2, layers: [{ kind: "lambda", code: "process.exit()" }] } },
        body,
      ),
      "an unknown activation": join(text.replace('"relu"', '"constructor"'), body),
      "a prototype": join(text.replace('"metadata":{}', '"metadata":{"__proto__":{"x":1}}'), body),
      "a constructor": join(text.replace('"metadata":{}', '"metadata":{"constructor":1}'), body),
      "too few weights": join(header, body.subarray(4)),
      "too many weights": join(header, Buffer.concat([body, Buffer.alloc(4)])),
      "sizes that claim 16 GB": join(
        { ...header, network: { inputs: 65_536, layers: [huge] } },
        body,
      ),
      "another shape": join({ ...header, network: { ...network, inputs: 3 } }, body),
      "changed weights": join(header, flipped),
      "negative units": join(text.replace('"units":16', '"units":-16'), body),
    };
    for (const [name, hostile] of Object.entries(cases)) {
      await expect(loadModel(hostile), name).rejects.toMatchObject({ code: "CPC_MODEL_INVALID" });
    }
    expect(({} as Record<string, unknown>)["x"]).toBeUndefined();
  });

  test("weights that are no numbers are refused although their digest fits", async () => {
    const broken = await withNetwork(logisticRegression(1), async (network) => {
      network.setWeights([Float32Array.of(Number.NaN), Float32Array.of(0)]);
      return saveModel(network);
    });
    await expect(loadModel(broken)).rejects.toThrow("expected finite weights");
  });
});

describe("evaluation", () => {
  const labels = [1, 0, 1, 0];

  test("log-loss and Brier agree with sums by hand", () => {
    const predictions = [0.9, 0.2, 0.6, 0.5];
    const byHand = -(Math.log(0.9) + Math.log(0.8) + Math.log(0.6) + Math.log(0.5)) / 4;
    expect(logLoss(predictions, labels)).toBeCloseTo(byHand, 12);
    expect(brierScore(predictions, labels)).toBeCloseTo((0.01 + 0.04 + 0.16 + 0.25) / 4, 12);
    expect(logLoss([0], [1])).toBeCloseTo(-Math.log(1e-7), 6);
    expect(baseRate(labels)).toBe(0.5);
  });

  test("the area under the curve counts pairs, ties half, and does not exist for one class", () => {
    expect(areaUnderCurve([0.9, 0.2, 0.6, 0.5], labels)).toBe(1);
    expect(areaUnderCurve([0.9, 0.6, 0.2, 0.5], labels)).toBe(0.5);
    expect(areaUnderCurve([0.3, 0.3, 0.3, 0.3], labels)).toBe(0.5);
    expect(areaUnderCurve([0.7, 0.7, 0.8, 0.1], labels)).toBe(0.875);
    expect(areaUnderCurve([0.1, 0.2], [1, 1])).toBeNull();
  });

  test("calibration compares what was said with what came, bin by bin", () => {
    const predictions = [0.1, 0.1, 0.9, 1];
    const result = calibration(predictions, [0, 1, 1, 1]);
    expect(result.bins.map(({ from, count, observedRate }) => [from, count, observedRate])).toEqual(
      [
        [0.1, 2, 0.5],
        [0.9, 2, 1],
      ],
    );
    expect(result.expectedError).toBeCloseTo(0.5 * 0.4 + 0.5 * 0.05, 12);
    expect(result.meanPredicted).toBeCloseTo(0.525, 12);
    expect(evaluateBinary(predictions, [0, 1, 1, 1]).count).toBe(4);
  });

  test("what is no probability or no label is refused", () => {
    for (const [predictions, truth] of [
      [[], []],
      [[0.5], [1, 0]],
      [[1.1], [1]],
      [[Number.NaN], [1]],
      [[0.5], [2]],
    ] as const) {
      expect(() => logLoss(predictions, truth)).toThrow(
        expect.objectContaining({ code: "CPC_INVALID_INPUT" }),
      );
    }
  });
});

describe("encoding", () => {
  const rows = {
    numbers: { values: Float32Array.of(1, 5, 3, Number.NaN, 5, 7), rowCount: 3, columnCount: 2 },
    texts: { carrier: ["UA", "B6", "UA"] },
  };
  const encoder = learnEncoder(rows, { numbers: ["x", "y"], categories: { carrier: 1 }, clip: 2 });

  test("numbers are standardised on the training rows, clipped, and flagged where missing", () => {
    expect(encodedColumns(encoder)).toEqual(["x", "y", "y missing", "carrier=UA"]);
    const encoded = encodeRows(encoder, {
      numbers: { values: Float32Array.of(3, Number.NaN, 1e9, 6), rowCount: 2, columnCount: 2 },
      texts: { carrier: ["UA", "never seen"] },
    });
    expect([...encoded.values]).toEqual([0, 0, 1, 1, 2, 0, 0, 0]);
  });

  test("an encoder survives JSON, and one that does not fit is refused", () => {
    expect(parseEncoder(JSON.parse(JSON.stringify(encoder)))).toEqual(encoder);
    expect(() => parseEncoder({ ...encoder, clip: -1 })).toThrow(
      expect.objectContaining({ code: "CPC_MODEL_INVALID" }),
    );
    expect(() => encodeRows(encoder, { ...rows, texts: {} })).toThrow(
      expect.objectContaining({ code: "CPC_INVALID_INPUT" }),
    );
  });
});
