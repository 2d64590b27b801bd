/**
 * A burst: up to 32 packets on their way through the switch, as flat arrays. One per lcore, allocated once, in scratch memory
 * that the WebAssembly functions of `ring-module.ts` see too.
 *
 * A packet is a run of segments in one source window or several; its bytes stay where the source has them until the
 * destination's copy. Stage 1 fills everything but `dest`, stage 2 fills `dest`.
 */
import { MAX_SEGMENTS, SegmentList } from '../virtqueue/segments.ts';

/** Packets that a burst holds at most. */
export const BURST_SIZE = 32;

/** Largest frame that is switched, bytes, without a VLAN tag's four: DPDK's jumbo limit. */
export const MAX_FRAME_BYTES = 9728;

/** Segments of a burst: what its packets have, and a front of its own for each (front-stage.ts). */
export const BURST_SEGMENTS = MAX_SEGMENTS + BURST_SIZE;

/** In place of a packet's length: its header asks for what makes no sense, and it goes nowhere. */
export const BAD_OFFLOAD = -1;

/** Words of each packet's front: both addresses, the type, and two bytes more. */
export const FRONT_WORDS = 4;
export const FRONT_BYTES = 4 * FRONT_WORDS;

/** The type in the last word of a front. */
const TYPE_MASK = 0xffff;

/** Words of each packet's virtio_net_hdr. */
export const HEADER_WORDS = 4;
export const HEADER_BYTES = 4 * HEADER_WORDS;

/** Words of the tally: packets by class of size, then those to group addresses, broadcast ones, and bytes of all. */
export const TALLY_GROUP = 8;
export const TALLY_BROADCAST = 9;
export const TALLY_BYTES = 10;
export const TALLY_WORDS = 11;

/** Words of the spread: in which bits the fronts differ, and the length of the longest packet. */
export const SPREAD_LONGEST = FRONT_BYTES / 4;
const SPREAD_WORDS = FRONT_WORDS + 1;

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
    header: words(HEADER_WORDS * BURST_SIZE),
    needs: words(BURST_SIZE),
    id: words(BURST_SIZE),
    slots: words(BURST_SIZE),
    first: words(BURST_SIZE + 1),
    len: words(BURST_SIZE),
    delivered: words(BURST_SIZE),
    all: words(BURST_SIZE),
    list: words(BURST_SIZE),
    segWindow: words(BURST_SEGMENTS),
    segOff: words(BURST_SEGMENTS),
    segLen: words(BURST_SEGMENTS),
    copies: words(3 * BURST_SIZE),
    used: words(2 * BURST_SIZE),
    tally: words(TALLY_WORDS),
    spread: words(SPREAD_WORDS),
  } as const;
})();

/** Up to {@link BURST_SIZE} packets, by number, as flat arrays. */
export class Burst {
  /** packets in the burst */
  count = 0;
  /** packets that ports should receive at most: 1 to BURST_SIZE */
  limit: number = BURST_SIZE;
  /** where their bytes lie, of one packet behind the other */
  readonly segments: SegmentList;
  /** packet i's segments are first[i] … first[i + 1] − 1 */
  readonly first: Int32Array;
  /** the packet's bytes, without the device header; or BAD_OFFLOAD */
  readonly len: Int32Array;
  /** the first 16 bytes of each packet, four words; what a shorter one lacks is zero */
  readonly front: Int32Array;
  /** the same by bytes */
  readonly frontBytes: Uint8Array;
  /** the packets' headers as the source has them, with HEADER_BYTES each, of those that need something; of others they mean nothing */
  readonly header: DataView;
  /** the same by bytes */
  readonly headerBytes: Uint8Array;
  /** what each packet needs of its receiver: NEED_… of `offload.ts`, 0 for nothing */
  readonly needs: Int32Array;
  /** some packet needs something */
  offloads = false;
  /**
   * a VLAN tag that has come beside each packet, not in its bytes: EtherType · 2¹⁶ + the tag's second half, as an int32; 0 for none.
   * Means something while `tagged`; stage 2 makes of it the tag that the packet would leave with.
   */
  readonly tag = new Int32Array(BURST_SIZE);
  /** some packet has come with a tag beside it: set by ports whose kernel takes tags off, which fill `tag` for all; stage 2 clears it */
  tagged = false;
  /** what the source ring gets back when the burst is complete: each packet's chain */
  readonly id: Int32Array;
  /** and the slots it takes */
  readonly slots: Int32Array;
  /** slots of all packets */
  slotCount = 0;
  /** the port that all packets go to, or −1: then `dest` says it of each */
  only = -1;
  /** where each packet goes: a port number, or one of the negative DEST_ codes of the switch */
  readonly dest = new Int32Array(BURST_SIZE);
  /** how many ports have taken each packet, where somebody wants to know: it counts on from what stands there */
  readonly delivered: Int32Array;
  /** the numbers of all packets, for a port that gets the whole burst */
  readonly all: Int32Array;
  /** room for the numbers of some */
  readonly list: Int32Array;
  /** `all` or `list`: the packets being enqueued at one port */
  order: Int32Array;
  /** what the packets taken, or delivered, since it was cleared add to a vring's counters */
  readonly tally: Int32Array;
  /** how far packets taken the plain way are alike */
  readonly spread: Int32Array;
  /**
   * all packets go between the same two addresses with the same type, none asks anything of its
   * receiver or has a tag beside it, each lies in one piece, and their lengths are fair
   */
  uniform = false;

  /** Empties the burst, for a port that is about to fill it by its own means. */
  clear(): void {
    this.segments.count = 0;
    this.count = 0;
    this.uniform = false;
    this.tagged = false;
    if (!this.offloads) return;
    this.needs.fill(0);
    this.offloads = false;
  }

  /** Makes the burst one frame, which lies in one piece and asks nothing of its receiver. */
  putOne(window: number, off: number, frame: Uint8Array): void {
    const { segments } = this;
    segments.count = 0;
    segments.push(window, off, frame.length);
    this.first[0] = 0;
    this.first[1] = 1;
    this.len[0] = frame.length;
    this.needs[0] = 0;
    this.tagged = false;
    this.uniform = false;
    this.frontBytes.fill(0, 0, FRONT_BYTES);
    this.frontBytes.set(frame.subarray(0, FRONT_BYTES));
    this.count = 1;
  }

  /** Whether the packets from number 0 on, all taken the plain way at once, are of one kind: from their spread. */
  get alike(): boolean {
    const { spread } = this;
    const differ = spread[0] | spread[1] | spread[2] | (spread[3] & TYPE_MASK);
    return differ === 0 && spread[SPREAD_LONGEST] <= MAX_FRAME_BYTES;
  }

  /** @param scratch memory for the arrays, a page at least */
  constructor(scratch: ArrayBuffer) {
    const words = (off: number, n: number) => new Int32Array(scratch, off, n);
    const segments = (off: number) => words(off, BURST_SEGMENTS);
    this.segments = new SegmentList(segments(SCRATCH.segWindow), segments(SCRATCH.segOff), segments(SCRATCH.segLen));
    this.first = words(SCRATCH.first, BURST_SIZE + 1);
    this.len = words(SCRATCH.len, BURST_SIZE);
    this.front = words(SCRATCH.front, FRONT_WORDS * BURST_SIZE);
    this.frontBytes = new Uint8Array(scratch, SCRATCH.front, FRONT_BYTES * BURST_SIZE);
    this.header = new DataView(scratch, SCRATCH.header, HEADER_BYTES * BURST_SIZE);
    this.headerBytes = new Uint8Array(scratch, SCRATCH.header, HEADER_BYTES * BURST_SIZE);
    this.needs = words(SCRATCH.needs, BURST_SIZE);
    this.id = words(SCRATCH.id, BURST_SIZE);
    this.slots = words(SCRATCH.slots, BURST_SIZE);
    this.delivered = words(SCRATCH.delivered, BURST_SIZE);
    this.all = words(SCRATCH.all, BURST_SIZE);
    for (let i = 0; i < BURST_SIZE; i++) this.all[i] = i;
    this.list = words(SCRATCH.list, BURST_SIZE);
    this.order = this.list;
    this.tally = words(SCRATCH.tally, TALLY_WORDS);
    this.spread = words(SCRATCH.spread, SPREAD_WORDS);
  }
}
