#!/usr/bin/env node
/** The bin of `coppice-api`: `npm run build` first. */
import { main } from "../dist/main.js";

await main(process.argv.slice(2));
