/** One bench in its own process; `run.ts` starts it and takes its rows. */
import { load } from "./machine.ts";
import { BENCHES } from "./rows.ts";

const [name = "", size] = process.argv.slice(2);
const bench = BENCHES[name];
if (bench === undefined) throw new Error(`no bench is called ${JSON.stringify(name)}`);
const loadBefore = load();
const measured = await bench.measure(size === "quick");
process.send?.(measured.map((row) => ({ name, ...row, loadBefore })));
process.disconnect();
process.exit(0);
