#!/usr/bin/env node
/** The bin of `coppice-scheduler`: `npm run build` first. */
import { main } from "../dist/main.js";

await main();
