/** The whole list of faults on the embedded doorbell. */
import { describeFaults } from "./suite.ts";

describeFaults("postgres", "whole");
