/**
 * A burst: up to 32 packets on their way through the switch, as flat arrays. One per lcore, allocated once.
 *
 * A packet is a run of segments in one source window or several; its bytes stay where the source has them until the
 * destination's copy. Stage 1 fills everything but `dest`, stage 2 fills `dest`.
 */

export const BURST_SIZE = 32;
export const MAX_SEGMENTS = 256;

/** Largest frame that is switched, bytes, without a VLAN tag's four: DPDK's jumbo limit. */
export const MAX_FRAME_BYTES = 9728;

/** Pieces of memory in windows, in order. */
export class SegmentList {
  count = 0;
  readonly window = new Int32Array(MAX_SEGMENTS);
  readonly off = new Int32Array(MAX_SEGMENTS);
  /** bytes */
  readonly len = new Int32Array(MAX_SEGMENTS);

  /** The caller has seen to it that there is room. */
  push(window: number, off: number, len: number): void {
    const at = this.count++;
    this.window[at] = window;
    this.off[at] = off;
    this.len[at] = len;
  }
}

export class Burst {
  /** packets in the burst */
  count = 0;
  readonly segments = new SegmentList();
  /** packet i's segments are first[i] … first[i + 1] − 1 */
  readonly first = new Int32Array(BURST_SIZE + 1);
  /** the packet's bytes, without the device header */
  readonly len = new Int32Array(BURST_SIZE);
  /** descriptor heads, which the source ring gets back when the burst is complete */
  readonly head = new Int32Array(BURST_SIZE);
  /** where each packet goes: a port number, or one of the negative DEST_ codes of the switch */
  readonly dest = new Int32Array(BURST_SIZE);
  /** how many ports have taken each packet */
  readonly delivered = new Int32Array(BURST_SIZE);
}
