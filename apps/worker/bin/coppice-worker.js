#!/usr/bin/env node
/** The bin of `coppice-worker`: `npm run build` first. */
import "../dist/main.js";
