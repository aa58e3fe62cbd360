#!/usr/bin/env node
/** The bin of `coppice`: hands the process's surroundings to main and its answer back. */
import { argv, cwd, env, exit, stderr, stdin, stdout } from "node:process";

import { main } from "../dist/main.js";

exit(await main({ argv: argv.slice(2), env, cwd: cwd(), stdin, stdout, stderr }));
