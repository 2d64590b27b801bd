/**
 * Stage 3 of a packet's way: reserves the driver's buffers for some packets of a burst, copies them there straight from the
 * source's memory, publishes them at once and notifies once.
 */
import { type CopyStage, MAX_COPY_ENTRIES } from '../mem/copy-stage.ts';
import type { WindowViews } from '../mem/window.ts';
import { VIRTIO_NET_HDR_MRG_RXBUF } from '../uapi/virtio-net.ts';
import { VRING_DESC_F_WRITE } from '../uapi/virtio-ring.ts';
import { type Burst, SegmentList } from './burst.ts';
import { appendChain, CHAIN_FULL } from './chain.ts';
import { FAULT_CHAIN_LOOP, FAULT_HEAD_RANGE, FAULT_NONE } from './fault.ts';
import type { SplitRing } from './split-ring.ts';

/** num_buffers in the last word of a 12-byte virtio_net_hdr: always 1 where a packet takes one chain (VIRTIO §5.1.6.3). */
const ONE_BUFFER = 1 << 16;
/** Chains that one mergeable packet may take; more is a buffer too small to be useful. */
const MAX_BUFFERS = 256;

/** Why a packet was not enqueued, as a slot of `Enqueuer.drops`. */
export const DROP_NO_BUFFER = 0;
export const DROP_TOO_BIG = 1;
export const DROP_FAULT = 2;

/** An lcore's means to enqueue: scratch that is made once, and what the last call did. */
export class Enqueuer {
  readonly #stage: CopyStage;
  readonly #windows: readonly WindowViews[];
  readonly #buffers = new SegmentList();
  /** packets not delivered by the last call, by reason */
  readonly drops = new Int32Array(3);
  /** bytes delivered by the last call, headers not counted */
  bytes = 0;
  /** entries waiting in the copy list, and the windows they go between */
  #entries = 0;
  #src = -1;
  #dst = -1;
  /** used entries filled but not published, and packets in them */
  #filled = 0;
  #delivered = 0;
  /** the avail index has been looked at for this call */
  #looked = false;

  /** `windows` is the lcore's table, by window id. */
  constructor(stage: CopyStage, windows: readonly WindowViews[]) {
    this.#stage = stage;
    this.#windows = windows;
  }

  /**
   * Delivers packets `list[from]` … `list[to − 1]` of the burst to the ring, in that order. A packet that finds no buffer or does not
   * fit is dropped and counted; a malformed chain sets `ring.fault`, and the rest is dropped.
   * @returns packets delivered
   */
  enqueue(ring: SplitRing, burst: Burst, list: Int32Array, from: number, to: number): number {
    this.drops[DROP_NO_BUFFER] = 0;
    this.drops[DROP_TOO_BIG] = 0;
    this.drops[DROP_FAULT] = 0;
    this.bytes = 0;
    this.#filled = 0;
    this.#delivered = 0;
    this.#looked = ring.ready < to - from;
    if (this.#looked) ring.refresh();
    let i = from;
    while (i < to) {
      this.#turnTo(burst.segments.window[burst.first[list[i]]], ring.map.window);
      i = this.#fillPlain(ring, burst, list, i, to);
      if (i === to) break;
      const packet = list[i];
      const windowChanges = burst.segments.window[burst.first[packet]] !== this.#src;
      if (windowChanges) continue;
      const status = this.#fillAny(ring, burst, packet);
      if (status < 0) this.#count(burst, packet);
      else this.drops[status]++;
      i++;
      if (ring.fault === FAULT_NONE) continue;
      this.drops[DROP_FAULT] += to - i;
      break;
    }
    this.#flush();
    if (this.#filled > 0) {
      ring.take(this.#filled);
      ring.publish(this.#filled);
      ring.notify();
    }
    return this.#delivered;
  }

  #count(burst: Burst, packet: number): void {
    burst.delivered[packet]++;
    this.#delivered++;
    this.bytes += burst.len[packet];
  }

  /**
   * Fills buffers with packets list[from] … list[to − 1] as long as each is one piece in the source window at hand and fits one plain
   * descriptor in the memory chunk at hand. A loop of its own without a call in it, as in `dequeue.ts`.
   * @returns the first packet that is something else, or `to`
   */
  #fillPlain(ring: SplitRing, burst: Burst, list: Int32Array, from: number, to: number): number {
    const { desc, descIdx, map, headerLen, num, mask, avail, availIdx, nextAvail, used32, usedRingIdx, nextUsed } =
      ring;
    const { hi: mapHi, lo: mapLo, reach, window: mapWindow, base } = map;
    const { first, len: lens, delivered, segments } = burst;
    const { window: srcWindows, off: srcOffs } = segments;
    const { dv } = this.#windows[mapWindow];
    const copies = this.#stage.list;
    const src = this.#src;
    const last = headerLen - 4;
    const lastWord = headerLen === VIRTIO_NET_HDR_MRG_RXBUF.size ? ONE_BUFFER : 0;
    const room = Math.min(ring.ready - this.#filled, MAX_COPY_ENTRIES - this.#entries);
    const end = Math.min(to, from + room);
    let filled = this.#filled;
    let at = 3 * this.#entries;
    let bytes = 0;
    let i = from;
    for (; i < end; i++) {
      const packet = list[i];
      const piece = first[packet];
      if (first[packet + 1] - piece !== 1 || srcWindows[piece] !== src) break;
      const head = avail[availIdx + 2 + ((nextAvail + filled) & mask)];
      if (head >= num) break;
      const entry = descIdx + 4 * head;
      const distance = (desc[entry] - mapLo) >>> 0;
      const hi = desc[entry + 1];
      const buffer = desc[entry + 2];
      const len = lens[packet];
      if ((desc[entry + 3] & 0xffff) !== VRING_DESC_F_WRITE || buffer < len + headerLen) break;
      if (hi !== mapHi || distance + buffer > reach) break;
      const off = base + distance;
      dv.setInt32(off, 0, true);
      dv.setInt32(off + 4, 0, true);
      dv.setInt32(off + last, lastWord, true);
      copies[at] = srcOffs[piece];
      copies[at + 1] = off + headerLen;
      copies[at + 2] = len;
      at += 3;
      const used = usedRingIdx + 2 * ((nextUsed + filled) & mask);
      used32[used] = head;
      used32[used + 1] = len + headerLen;
      delivered[packet]++;
      bytes += len;
      filled++;
    }
    this.#filled = filled;
    this.#entries += i - from;
    this.#delivered += i - from;
    this.bytes += bytes;
    return i;
  }

  /** Makes copies go from window `src` to window `dst` from now on. */
  #turnTo(src: number, dst: number): void {
    if (src === this.#src && dst === this.#dst && this.#entries < MAX_COPY_ENTRIES) return;
    this.#flush();
    this.#src = src;
    this.#dst = dst;
  }

  #flush(): void {
    if (this.#entries === 0) return;
    this.#stage.flush(this.#windows[this.#src], this.#windows[this.#dst], this.#entries);
    this.#entries = 0;
  }

  /** Lists one copy. */
  #copy(src: number, srcOff: number, dst: number, dstOff: number, len: number): void {
    this.#turnTo(src, dst);
    const { list } = this.#stage;
    const at = 3 * this.#entries++;
    list[at] = srcOff;
    list[at + 1] = dstOff;
    list[at + 2] = len;
  }

  /**
   * Delivers one packet of any number of pieces into chains of any layout, several where the ring is mergeable.
   * @returns −1 when delivered, else the DROP_ reason; the driver's buffers are then as they were
   */
  #fillAny(ring: SplitRing, burst: Burst, packet: number): number {
    if (ring.fault !== FAULT_NONE) return DROP_FAULT;
    const need = burst.len[packet] + ring.headerLen;
    const buffers = this.#buffers;
    buffers.count = 0;
    let got = 0;
    let chains = 0;
    while (got < need) {
      const entry = this.#filled + chains;
      if (entry >= ring.ready && !this.#looked) {
        this.#looked = true;
        ring.refresh();
      }
      if (entry >= ring.ready) return ring.fault === FAULT_NONE ? DROP_NO_BUFFER : DROP_FAULT;
      const head = ring.headAt(entry);
      if (head >= ring.num) {
        ring.fault = FAULT_HEAD_RANGE;
        return DROP_FAULT;
      }
      const bytes = appendChain(ring, head, VRING_DESC_F_WRITE, buffers);
      if (bytes < 0) {
        if (bytes === CHAIN_FULL && chains === 0) ring.fault = FAULT_CHAIN_LOOP;
        return bytes === CHAIN_FULL && chains > 0 ? DROP_TOO_BIG : DROP_FAULT;
      }
      if (chains === 0 && bytes < ring.headerLen) return DROP_TOO_BIG;
      if (bytes < need && !ring.mergeable) return DROP_TOO_BIG;
      if (chains === MAX_BUFFERS) return DROP_TOO_BIG;
      ring.putUsed(entry, head, Math.min(bytes, need - got));
      got += bytes;
      chains++;
    }
    this.#scatter(ring, burst, packet, chains);
    this.#filled += chains;
    return -1;
  }

  /** Writes the header and the packet's pieces over the buffers listed in `#buffers`, which hold all of it. */
  #scatter(ring: SplitRing, burst: Burst, packet: number, chains: number): void {
    const { segments } = burst;
    const buffers = this.#buffers;
    let b = 0;
    let room = buffers.len[0];
    let off = buffers.off[0];
    for (let i = 0; i < ring.headerLen; i++) {
      while (room === 0) {
        b++;
        room = buffers.len[b];
        off = buffers.off[b];
      }
      this.#windows[buffers.window[b]].u8[off++] = headerByte(i, chains);
      room--;
    }
    for (let s = burst.first[packet]; s < burst.first[packet + 1]; s++) {
      let from = segments.off[s];
      let left = segments.len[s];
      while (left > 0) {
        while (room === 0) {
          b++;
          room = buffers.len[b];
          off = buffers.off[b];
        }
        const part = Math.min(left, room);
        this.#copy(segments.window[s], from, buffers.window[b], off, part);
        from += part;
        off += part;
        left -= part;
        room -= part;
      }
    }
  }
}

/** Byte `i` of a header that asks nothing of the driver, for a packet in `chains` chains. */
function headerByte(i: number, chains: number): number {
  if (i === 10) return chains & 0xff;
  return i === 11 ? chains >> 8 : 0;
}
