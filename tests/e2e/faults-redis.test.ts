/** Each fault once on Redis; `npm run test:faults` runs the whole list. */
import { hasRedis } from "@coppice/testing";
import { describeFaults } from "../faults/suite.ts";

describeFaults("redis", "quick", await hasRedis());
