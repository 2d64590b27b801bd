/**
 * Stage 3 of a packet's way: reserves the driver's buffers for some packets of a burst, copies them there straight from the
 * source's memory, publishes them at once and notifies once.
 */
import { CopyStage, MAX_COPY_ENTRIES } from '../mem/copy-stage.ts';
import type { WindowViews } from '../mem/window.ts';
import { VRING_DESC_F_WRITE } from '../uapi/virtio-ring.ts';
import { appendChain, CHAIN_FULL } from '../virtqueue/chain.ts';
import { FAULT_CHAIN_LOOP, FAULT_HEAD_RANGE, FAULT_NONE } from '../virtqueue/fault.ts';
import { MAX_SEGMENTS, SegmentList } from '../virtqueue/segments.ts';
import type { SplitRing } from '../virtqueue/split-ring.ts';
import type { Burst } from './burst.ts';
import type { RingStage } from './ring-stage.ts';

/** Chains that one mergeable packet may take; more is a buffer too small to be useful. */
const MAX_BUFFERS = 256;

/** Why a packet was not enqueued, as a slot of `Enqueuer.drops`. */
export const DROP_NO_BUFFER = 0;
export const DROP_TOO_BIG = 1;
export const DROP_FAULT = 2;

/** A thread's means to enqueue packets of its burst: scratch that is made once, and what the last call did. */
export class Enqueuer {
  readonly #ringStage: RingStage;
  readonly #copyStage = new CopyStage();
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
  /** used entries filled but not published */
  #filled = 0;
  /** the ring has been looked at again for want of buffers: once a call is enough */
  #looked = false;

  /** `windows` is the thread's table, by window id. */
  constructor(ringStage: RingStage, windows: readonly WindowViews[]) {
    this.#ringStage = ringStage;
    this.#windows = windows;
  }

  /**
   * Delivers packets `list[from]` … `list[to − 1]` of the burst, at most 32, to the ring, in that order. A packet that finds no buffer
   * or does not fit is dropped and counted; a malformed chain sets `ring.fault`, and the rest is dropped.
   * @returns packets delivered
   */
  enqueue(ring: SplitRing, list: Int32Array, from: number, to: number): number {
    const { burst } = this.#ringStage;
    const n = to - from;
    for (let i = 0; i < n; i++) burst.list[i] = list[from + i];
    this.drops[DROP_NO_BUFFER] = 0;
    this.drops[DROP_TOO_BIG] = 0;
    this.drops[DROP_FAULT] = 0;
    this.bytes = 0;
    this.#filled = 0;
    this.#looked = ring.ready < n;
    if (this.#looked) ring.refresh();
    let delivered = 0;
    let i = 0;
    while (i < n) {
      const plain = this.#fillPlain(ring, burst, i, n);
      delivered += plain - i;
      i = plain;
      if (i === n) break;
      const packet = burst.list[i++];
      const status = this.#fillAny(ring, burst, packet);
      if (status >= 0) this.drops[status]++;
      else {
        burst.delivered[packet]++;
        this.bytes += burst.len[packet];
        delivered++;
      }
    }
    this.#flush();
    if (this.#filled > 0) {
      ring.take(this.#filled);
      ring.publish(this.#filled);
      ring.notify();
    }
    return delivered;
  }

  /** Delivers packets from list[from] on that go the plain way. @returns the first that does not, or `n` */
  #fillPlain(ring: SplitRing, burst: Burst, from: number, n: number): number {
    const end = Math.min(n, from + ring.ready - this.#filled);
    if (from >= end || ring.fault !== FAULT_NONE) return from;
    const src = this.#windows[burst.segments.window[burst.first[burst.list[from]]]];
    if (src === undefined) return from;
    const to = this.#ringStage.fill(ring, src, from, end, this.#filled);
    this.#filled += to - from;
    this.bytes += burst.bytes[0];
    return to;
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
    this.#copyStage.flush(this.#windows[this.#src], this.#windows[this.#dst], this.#entries);
    this.#entries = 0;
  }

  /** Lists one copy. */
  #copy(src: number, srcOff: number, dst: number, dstOff: number, len: number): void {
    this.#turnTo(src, dst);
    const { list } = this.#copyStage;
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
