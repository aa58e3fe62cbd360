/** A supervisor as a process of its own, whose child is busy for ever; prints the child's pid. */
import process from "node:process";

import { projectOf, startHarness } from "./harness.ts";

const bundle = projectOf("{ echo: (ctx) => { console.log(`pid ${process.pid}`); for (;;); } }");
const house = await startHarness({ bundle, dir: process.argv[2] ?? "." });
const { assignment } = house.api.add({});
await house.bells.ring(assignment);
await house.api.until(() => house.api.logOf(assignment).includes("pid "));
process.stdout.write(house.api.logOf(assignment));
