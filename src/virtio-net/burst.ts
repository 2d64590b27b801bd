/**
 * A burst: up to 32 packets on their way through the switch, as flat arrays. One per lcore, allocated once, in scratch memory
 * that the WebAssembly functions of `ring-module.ts` see too.
 *
 * A packet is a run of segments in one source window or several; its bytes stay where the source has them until the
 * destination's copy. Stage 1 fills everything but `dest`, stage 2 fills `dest`.
 */

import { MAX_SEGMENTS, SegmentList } from '../virtqueue/segments.ts';

export const BURST_SIZE = 32;

/** Largest frame that is switched, bytes, without a VLAN tag's four: DPDK's jumbo limit. */
export const MAX_FRAME_BYTES = 9728;

/** Words of each packet's front: both addresses, the type, and two bytes more. */
export const FRONT_WORDS = 4;
export const FRONT_BYTES = 4 * FRONT_WORDS;

/** Where the arrays lie in scratch memory, bytes. */
export const SCRATCH = (() => {
  let end = 0;
  const words = (n: number) => {
    const at = end;
    end += 4 * n;
    return at;
  };
  return {
    front: words(FRONT_WORDS * BURST_SIZE),
    head: words(BURST_SIZE),
    first: words(BURST_SIZE + 1),
    len: words(BURST_SIZE),
    delivered: words(BURST_SIZE),
    list: words(BURST_SIZE),
    segWindow: words(MAX_SEGMENTS),
    segOff: words(MAX_SEGMENTS),
    segLen: words(MAX_SEGMENTS),
    copies: words(3 * BURST_SIZE),
    bytes: words(1),
  } as const;
})();

export class Burst {
  /** packets in the burst */
  count = 0;
  readonly segments: SegmentList;
  /** packet i's segments are first[i] … first[i + 1] − 1 */
  readonly first: Int32Array;
  /** the packet's bytes, without the device header */
  readonly len: Int32Array;
  /** the first 16 bytes of each packet, four words; what a shorter one lacks is zero */
  readonly front: Int32Array;
  readonly frontBytes: Uint8Array;
  /** descriptor heads, which the source ring gets back when the burst is complete */
  readonly head: Int32Array;
  /** where each packet goes: a port number, or one of the negative DEST_ codes of the switch */
  readonly dest = new Int32Array(BURST_SIZE);
  /** how many ports have taken each packet */
  readonly delivered: Int32Array;
  /** the packets being enqueued at one port */
  readonly list: Int32Array;
  /** one word: payload bytes of the packets that the last `fill` copied */
  readonly bytes: Int32Array;

  /** @param scratch memory for the arrays, a page at least */
  constructor(scratch: ArrayBuffer) {
    const words = (off: number, n: number) => new Int32Array(scratch, off, n);
    const segments = (off: number) => words(off, MAX_SEGMENTS);
    this.segments = new SegmentList(segments(SCRATCH.segWindow), segments(SCRATCH.segOff), segments(SCRATCH.segLen));
    this.first = words(SCRATCH.first, BURST_SIZE + 1);
    this.len = words(SCRATCH.len, BURST_SIZE);
    this.front = words(SCRATCH.front, FRONT_WORDS * BURST_SIZE);
    this.frontBytes = new Uint8Array(scratch, SCRATCH.front, FRONT_BYTES * BURST_SIZE);
    this.head = words(SCRATCH.head, BURST_SIZE);
    this.delivered = words(SCRATCH.delivered, BURST_SIZE);
    this.list = words(SCRATCH.list, BURST_SIZE);
    this.bytes = words(SCRATCH.bytes, 1);
  }
}
