/**
 * Randomness as an argument: a small, seeded, serialisable generator.
 *
 * sfc32 (Doty-Humphrey, PractRand): 128 bits of state, passes BigCrush. Its state is four uint32,
 * so that a checkpoint can hold it and a resumed attempt continues the same sequence. Not for
 * secrets.
 */
export interface Rng {
  /** Uniform in [0, 1), 32 bits of precision. */
  next(): number;
  /** The state, to be handed to `rngFromState` later. */
  state(): RngState;
}

export type RngState = readonly [number, number, number, number];

export const rngFromState = (state: RngState): Rng => {
  let [a, b, c, counter] = state;
  return {
    next: () => {
      const t = (((a + b) | 0) + counter) | 0;
      counter = (counter + 1) | 0;
      a = b ^ (b >>> 9);
      b = (c + (c << 3)) | 0;
      c = (c << 21) | (c >>> 11);
      c = (c + t) | 0;
      return (t >>> 0) / 4_294_967_296;
    },
    state: () => [a, b, c, counter],
  };
};

/** Any text may be the seed; the same text gives the same sequence everywhere. */
export const seededRng = (seed: string | number): Rng => {
  const text = String(seed);
  const words: [number, number, number] = [0x9e3779b9, 0x243f6a88, 0xb7e15162];
  for (let index = 0; index < words.length; index += 1) {
    let hash = (words[index] ?? 0) ^ text.length;
    for (let at = 0; at < text.length; at += 1) {
      hash = Math.imul(hash ^ text.charCodeAt(at), 0x85ebca6b);
      hash ^= hash >>> 13;
      hash = Math.imul(hash, 0xc2b2ae35);
      hash ^= hash >>> 16;
    }
    words[index] = hash;
  }
  const rng = rngFromState([words[0], words[1], words[2], 1]);
  // The first outputs still carry the seed's structure.
  for (let round = 0; round < 15; round += 1) rng.next();
  return rng;
};
