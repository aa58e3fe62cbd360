/** How people write steps: `<run>`, `<run>/train`, `<run>/train[3]`. */
import { CoppiceError } from "@coppice/core";

export interface StepAddress {
  readonly run: string;
  readonly step: string | undefined;
  readonly item: number | undefined;
}

const ADDRESS = /^([A-Za-z0-9_-]+)(?:\/([A-Za-z][A-Za-z0-9_-]*)(?:\[(\d{1,9})\])?)?$/;

/** @throws CPC_INVALID_INPUT */
export const parseStepAddress = (text: string): StepAddress => {
  const match = ADDRESS.exec(text);
  if (match === null) {
    throw new CoppiceError("CPC_INVALID_INPUT", {
      detail: `expected <run>, <run>/<step> or <run>/<step>[<item>]. Received: ${text}`,
    });
  }
  const [, run = "", step, item] = match;
  return { run, step, item: item === undefined ? undefined : Number(item) };
};

/** `train`, or `train[3]` for an item of a mapped step. */
export const formatStep = (key: string, item: number | null, isMapped: boolean): string =>
  isMapped && item !== null ? `${key}[${item}]` : key;

/** A run's id, whole or shortened, and not a pipeline's name (which has no underscore). */
export const looksLikeRun = (text: string): boolean =>
  /^run_[0-9a-z]+$/i.test(text) || /^[0-9a-f]{8}-[0-9a-f-]{27}$/i.test(text);
