/**
 * Crash points, for tests only: COPPICE_FAILPOINTS=commit.written kills the process there, at once
 * and without goodbye; `commit.written@3` does so the third time.
 */
export const createFailpoint = (points: readonly string[]): ((label: string) => void) => {
  const left = new Map(
    points.map((point): [string, number] => {
      const [label = "", count = "1"] = point.split("@");
      return [label, Number(count)];
    }),
  );
  return (label) => {
    const count = left.get(label);
    if (count === undefined) return;
    left.set(label, count - 1);
    if (count <= 1) process.kill(process.pid, "SIGKILL");
  };
};
