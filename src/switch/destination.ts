/**
 * Where a packet goes, as stage 2 writes it to `burst.dest`: the number of a port, or one of these.
 */

/** To all uplinks. */
export const DEST_UPLINKS = -1;
/** To nobody. */
export const DEST_DROP = -2;
/** This less the slot of a counter: to nobody, and that counter says why. Only between the parts of stage 2. */
export const TARGET_DROP = -2;
/** This and above: flooded, see {@link flood}. */
export const DEST_FLOOD = 2 ** 28;

const VID_BITS = 12;

/** To every port that takes frames of VLAN `vid`, but the one it came from and port `except`; −1: but none. */
export const flood = (vid: number, except: number) => DEST_FLOOD | ((except + 1) << VID_BITS) | vid;
export const floodVid = (dest: number) => dest & (2 ** VID_BITS - 1);
export const floodExcept = (dest: number) => ((dest - DEST_FLOOD) >> VID_BITS) - 1;
