/** Fresh ids and random numbers: the engine's only sources of chance. */
import { randomBytes, randomInt } from "node:crypto";

import { type IdByPrefix, type IdPrefix, uuidV7 } from "@coppice/core";

/** Only names the kind at the call; the id itself carries no prefix inside. */
export const newId = <P extends IdPrefix>(_prefix: P): IdByPrefix[P] =>
  uuidV7(Date.now(), randomBytes(10)) as IdByPrefix[P];

const STEPS = 2 ** 32;

/** Uniform in [0, 1). */
export const secureRandom = (): number => randomInt(STEPS) / STEPS;
