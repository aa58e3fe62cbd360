/** The whole list of faults on Redis. */
import { hasRedis } from "@coppice/testing";
import { describeFaults } from "./suite.ts";

describeFaults("redis", "whole", await hasRedis());
