/**
 * The file descriptors of a child, apart from the schemas: a child must not pay for loading zod.
 */
/** Orders come in on 3, words go out on 4, 5 is the watchdog's. */
export const CHILD_FD_IN = 3;
export const CHILD_FD_OUT = 4;
export const CHILD_FD_WATCHDOG = 5;
