#!/usr/bin/env node
/** The bin of `coppice`: hands the process's surroundings to main and its answer back. */
import { argv, cwd, env, exit, stderr, stdin, stdout } from "node:process";

import { main } from "../dist/main.js";

// The reader has gone, as `| head` does: there is nobody left to tell anything.
stdout.on("error", (error) => exit(error.code === "EPIPE" ? 0 : 1));

exit(await main({ argv: argv.slice(2), env, cwd: cwd(), stdin, stdout, stderr }));
