/**
 * What is wrong with a virtio-user ring, by number.
 */

/** What a back end did to a ring; 0 for nothing wrong. */
export const USER_FAULTS = [
  'nothing',
  'it moved the used index beyond what was on offer',
  'it used a buffer that was not on offer',
  'it says that it wrote more than a buffer holds',
  'it used a receive buffer that is shorter than the packet header',
  'it says that a frame came in no buffers, or in too many',
  'it used only some of the buffers of a frame',
  'none of its own: the thread that had the ring has gone',
] as const;
export const FAULT_INDEX = 1;
export const FAULT_NOT_ON_OFFER = 2;
export const FAULT_TOO_LONG = 3;
export const FAULT_NO_HEADER = 4;
export const FAULT_NUM_BUFFERS = 5;
export const FAULT_INCOMPLETE = 6;
export const FAULT_ABANDONED = 7;
