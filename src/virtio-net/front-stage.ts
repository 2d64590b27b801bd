/**
 * Gives the packets of a burst fronts of their own, in memory that no guest reaches: addresses, tag and type as they were read once and
 * looked at, whatever the guest writes over its own meanwhile. In such a front a VLAN tag is put in, taken off or changed for each port.
 */
import type { WindowViews } from '../mem/window.ts';
import { ETHHDR, VLAN_HLEN } from '../uapi/ip.ts';
import { VIRTIO_NET_HDR_MRG_RXBUF } from '../uapi/virtio-net.ts';
import { BURST_SIZE, type Burst, FRONT_BYTES, HEADER_BYTES } from './burst.ts';

const { off: HDR } = VIRTIO_NET_HDR_MRG_RXBUF;
const ADDRESSES = ETHHDR.off.h_proto;
/** Room for each front: Ethernet header and a tag. */
const SLOT_BYTES = 32;

/** One thread's. */
export class FrontStage {
  readonly #memory: WindowViews;
  readonly #off: number;
  /** of each packet of an open burst: bytes behind its own front and tag; and where its header says that checksums begin, and headers end */
  readonly #rest = new Int32Array(BURST_SIZE);
  readonly #csumStart = new Int32Array(BURST_SIZE);
  readonly #hdrLen = new Int32Array(BURST_SIZE);
  readonly #cut = new Int32Array(BURST_SIZE);

  /** @param memory a window of this thread's table, of which the stage alone writes to the 1024 bytes at `off` */
  constructor(memory: WindowViews, off: number) {
    this.#memory = memory;
    this.#off = off;
  }

  /**
   * Puts a segment of its own in front of each packet, in place of its first 14 bytes and of `cut[i]` behind them. Then `dress`
   * comes, for every packet that goes anywhere. Stage 4 does not look at segments and lengths any more.
   * @param cut 4 for a packet whose tag comes off, else 0
   */
  open(burst: Burst, cut: Int32Array): void {
    const { segments, first, len, needs, header, count } = burst;
    burst.uniform = false;
    const { window, off, len: bytes } = segments;
    let end = first[count];
    segments.count = end + count;
    first[count] = segments.count;
    for (let i = count - 1; i >= 0; i--) {
      const from = first[i];
      for (let s = end - 1; s >= from; s--) {
        window[s + i + 1] = window[s];
        off[s + i + 1] = off[s];
        bytes[s + i + 1] = bytes[s];
      }
      let skip = ETHHDR.size + cut[i];
      this.#rest[i] = len[i] - skip;
      this.#cut[i] = cut[i];
      for (let s = from + i + 1; s < end + i + 1 && skip > 0; s++) {
        const part = Math.min(skip, bytes[s]);
        off[s] += part;
        bytes[s] -= part;
        skip -= part;
      }
      first[i] = from + i;
      window[from + i] = this.#memory.id;
      off[from + i] = this.#off + SLOT_BYTES * i;
      bytes[from + i] = 0;
      end = from;
      if (needs[i] === 0) continue;
      this.#csumStart[i] = header.getUint16(HEADER_BYTES * i + HDR.csum_start, true);
      this.#hdrLen[i] = header.getUint16(HEADER_BYTES * i + HDR.hdr_len, true);
    }
  }

  /**
   * Makes packet `i` of an open burst begin with its addresses, then `tag`, as in `burst.tag`, or none for 0, and the EtherType `type`.
   * Whoever takes the packet has read it before it is dressed anew.
   */
  dress(burst: Burst, i: number, tag: number, type: number): void {
    const { frontBytes, segments, first, len, needs, header } = burst;
    const { u8 } = this.#memory;
    const at = this.#off + SLOT_BYTES * i;
    for (let b = 0; b < ADDRESSES; b++) u8[at + b] = frontBytes[FRONT_BYTES * i + b];
    let end = at + ADDRESSES;
    if (tag !== 0) {
      u8[end] = tag >>> 24;
      u8[end + 1] = tag >>> 16;
      u8[end + 2] = tag >>> 8;
      u8[end + 3] = tag;
      end += VLAN_HLEN;
    }
    u8[end] = type >> 8;
    u8[end + 1] = type;
    const front = end + 2 - at;
    segments.len[first[i]] = front;
    len[i] = front + this.#rest[i];
    if (needs[i] === 0) return;
    const longer = front - ETHHDR.size - this.#cut[i];
    header.setUint16(HEADER_BYTES * i + HDR.csum_start, this.#csumStart[i] + longer, true);
    if (this.#hdrLen[i] !== 0) header.setUint16(HEADER_BYTES * i + HDR.hdr_len, this.#hdrLen[i] + longer, true);
  }
}
