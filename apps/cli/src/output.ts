/**
 * The only file that writes to the terminal.
 *
 * What must stay true: with `--json` stdout holds JSON and nothing else; colour and redrawing
 * happen only where stdout is a terminal; results go to stdout, everything about how it went to
 * stderr.
 */
import { stripVTControlCharacters } from "node:util";

import { type CoppiceError, ERRORS, type ErrorEntry, toErrorRecord } from "@coppice/core";
import pc from "picocolors";

export type Colors = ReturnType<typeof pc.createColors>;

/** What a stream must be able to do; process.stdout is one. */
export interface TextStream {
  write(text: string): unknown;
  readonly isTTY?: boolean;
  readonly columns?: number;
  readonly rows?: number;
}

/** A terminal that tells no size, or none yet. */
const WIDTH = 80;
const HEIGHT = 24;

export interface OutputOptions {
  readonly stdout: TextStream;
  readonly stderr: TextStream;
  readonly isJson: boolean;
  readonly env: Readonly<Record<string, string | undefined>>;
}

export interface Output {
  readonly isJson: boolean;
  /** Whether lines may be redrawn. */
  readonly isLive: boolean;
  readonly colors: Colors;
  /** To stdout: the result, for people. */
  line(text?: string): void;
  /** To stderr: how it goes. Nothing with `--json`. */
  note(text: string): void;
  /** The result: the value with `--json`, the lines for people otherwise. */
  result(value: unknown, lines: () => readonly string[]): void;
  /** One JSON value on a line of its own, for streams of values. */
  jsonLine(value: unknown): void;
  /** Draws these lines over those drawn before; `keep` leaves them standing. */
  draw(lines: readonly string[]): void;
  keep(): void;
  problem(error: CoppiceError): void;
  /** Where there is no code of ours: a defect, or the system. */
  crash(error: unknown): void;
}

const problemLines = (error: CoppiceError, colors: Colors): readonly string[] => {
  const entry: ErrorEntry = ERRORS[error.code];
  const fields = error.data["errors"];
  return [
    `${colors.red("error:")} ${entry.summary} ${colors.dim(error.code)}`,
    ...(error.detail === undefined ? [] : error.detail.split("\n").map((line) => `  ${line}`)),
    ...(Array.isArray(fields)
      ? (fields as { pointer: string; message: string }[])
          .map(({ pointer, message }) => `${pointer}: ${message}`)
          .filter((line) => error.detail?.includes(line) !== true)
          .map((line) => `  ${line}`)
      : []),
    ...(error.hint === undefined ? [] : [`${colors.cyan("hint:")} ${error.hint}`]),
  ];
};

/** Cuts to the width, colours left out of the count; cut text loses its colours. */
export const fit = (line: string, width: number): string => {
  const plain = stripVTControlCharacters(line);
  return plain.length <= width ? line : `${plain.slice(0, Math.max(0, width - 1))}…`;
};

const COLOR = /^\[[0-9;]*m/;
const isControl = (code: number): boolean =>
  (code < 32 && code !== 9 && code !== 10) || (code >= 127 && code < 160);

/**
 * Text of steps and names of items may hold anything. Colours and line breaks stay; whatever else would
 * steer the terminal is shown as a sign instead of being obeyed.
 */
export const tame = (text: string): string => {
  let tamed = "";
  for (let at = 0; at < text.length; at += 1) {
    const code = text.charCodeAt(at);
    const isColor = code === 27 && COLOR.test(text.slice(at + 1, at + 20));
    tamed += isColor || !isControl(code) ? text[at] : "\uFFFD";
  }
  return tamed;
};

export const createOutput = ({ stdout, stderr, isJson, env }: OutputOptions): Output => {
  const isTerminal = stdout.isTTY === true && env["TERM"] !== "dumb";
  const hasColor =
    !isJson &&
    (env["NO_COLOR"] ?? "") === "" &&
    (isTerminal || (env["FORCE_COLOR"] ?? "0") !== "0");
  const colors = pc.createColors(hasColor);
  const widthNow = (): number => (isTerminal ? stdout.columns || WIDTH : 200);
  let drawn = 0;
  const line = (text = ""): void => void stdout.write(`${tame(text)}\n`);
  const jsonLine = (value: unknown): void => line(JSON.stringify(value));
  return {
    isJson,
    isLive: isTerminal && !isJson,
    colors,
    line,
    jsonLine,
    note: (text) => {
      if (!isJson) stderr.write(`${tame(text)}\n`);
    },
    result: (value, lines) => {
      if (isJson) jsonLine(value);
      else for (const text of lines()) line(text);
    },
    draw: (lines) => {
      const up = drawn === 0 ? "" : `\u001B[${drawn}A`;
      // What has left the screen at the top can't be drawn over.
      const shown = lines
        .slice(-((stdout.rows || HEIGHT) - 1))
        .map((text) => fit(tame(text), widthNow()));
      stdout.write(`${up}\u001B[0J${shown.map((text) => `${text}\n`).join("")}`);
      drawn = shown.length;
    },
    keep: () => {
      drawn = 0;
    },
    problem: (error) => {
      if (isJson) {
        const { code, detail, hint, data } = error;
        const title = ERRORS[code].summary;
        stderr.write(`${JSON.stringify({ error: { code, title, detail, hint, data } })}\n`);
      } else {
        for (const text of problemLines(error, colors)) stderr.write(`${tame(text)}\n`);
      }
    },
    crash: (error) => {
      const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
      const record = toErrorRecord(error);
      stderr.write(
        isJson ? `${JSON.stringify({ error: record })}\n` : `${colors.red("error:")} ${text}\n`,
      );
    },
  };
};
