/**
 * Why a ring was stopped. A ring at fault stays stopped until the front end starts it again; nobody else notices.
 */

export const FAULT_NONE = 0;
export const FAULT_AVAIL_JUMP = 1;
export const FAULT_HEAD_RANGE = 2;
export const FAULT_DESC_RANGE = 3;
export const FAULT_CHAIN_LOOP = 4;
export const FAULT_ADDRESS = 5;
export const FAULT_ZERO_LENGTH = 6;
export const FAULT_DIRECTION = 7;
export const FAULT_INDIRECT = 8;
export const FAULT_NO_HEADER = 9;
export const FAULT_INFLIGHT = 10;

/** By fault: the counter's name, and the sentence for the log. */
export const FAULTS: readonly { readonly name: string; readonly text: string }[] = [
  { name: 'none', text: 'no fault' },
  { name: 'avail_jump', text: 'the avail index runs ahead of the ring by more than its size' },
  { name: 'head_range', text: 'the avail ring names a descriptor beyond the table' },
  { name: 'desc_range', text: 'a chain goes on to a descriptor beyond the table' },
  { name: 'chain_loop', text: 'a chain is longer than its table: it loops' },
  { name: 'address', text: 'a descriptor lies outside guest memory' },
  { name: 'zero_length', text: 'a descriptor has length zero' },
  { name: 'direction', text: 'a descriptor is write-only where it should be read-only, or the other way round' },
  { name: 'indirect', text: 'an indirect table is malformed, nested or was not negotiated' },
  { name: 'no_header', text: 'a chain is shorter than the packet header' },
  { name: 'inflight', text: 'its inflight records are of an unknown version, broken, or of another ring' },
];
