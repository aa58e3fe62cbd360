/**
 * A thread that ends this child's whole process group when its supervisor is gone.
 *
 * It blocks in a read of a pipe whose other end only the supervisor holds and never writes to: the
 * read returns when the supervisor has ended, however it ended. It works while the main thread is
 * busy, because it is another thread that waits in the kernel.
 */
import { readSync } from "node:fs";
import process from "node:process";

import { CHILD_FD_WATCHDOG } from "./fds.ts";

const waitForEnd = (): void => {
  const byte = Buffer.alloc(1);
  for (;;) {
    try {
      if (readSync(CHILD_FD_WATCHDOG, byte, 0, 1, null) === 0) return;
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code;
      if (code !== "EINTR" && code !== "EAGAIN") return;
    }
  }
};

waitForEnd();
process.kill(-process.pid, "SIGKILL");
