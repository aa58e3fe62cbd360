/** The project: what `coppice run` finds here. */
import { defineProject } from "@coppice/sdk";
import { lateFlights } from "./src/pipelines/late-flights.ts";

export default defineProject({
  name: "quickstart",
  pipelines: [lateFlights],
  files: ["data/*.csv"],
});
