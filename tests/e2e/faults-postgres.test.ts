/** Each fault once on the embedded doorbell; `npm run test:faults` runs the whole list. */
import { describeFaults } from "../faults/suite.ts";

describeFaults("postgres", "quick");
