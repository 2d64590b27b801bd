/**
 * Stage 3 of a packet's way: reserves the driver's buffers for some packets of a burst, copies them there straight from the
 * source's memory, publishes them at once and notifies once.
 */
import { type CopyStage, MAX_COPY_ENTRIES } from '../mem/copy-stage.ts';
import type { WindowViews } from '../mem/window.ts';
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
  /** used entries filled but not published */
  #filled = 0;

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
    this.drops.fill(0);
    this.bytes = 0;
    this.#filled = 0;
    let delivered = 0;
    if (ring.ready < to - from) ring.refresh();
    const { desc, descIdx, map, headerLen, num } = ring;
    const { segments } = burst;
    for (let i = from; i < to; i++) {
      const packet = list[i];
      const need = burst.len[packet] + headerLen;
      const first = burst.first[packet];
      if (this.#filled < ring.ready && burst.first[packet + 1] - first === 1) {
        const head = ring.headAt(this.#filled);
        if (head < num) {
          const at = descIdx + 4 * head;
          const lo = desc[at];
          const hi = desc[at + 1];
          const room = desc[at + 2];
          if ((desc[at + 3] & 0xffff) === VRING_DESC_F_WRITE && room >= need) {
            const chunk = map.find(lo, hi, room);
            if (chunk >= 0) {
              const window = map.window(chunk);
              const off = map.offset(chunk, lo);
              writeHeader(this.#windows[window].dv, off, headerLen);
              this.#copy(segments.window[first], segments.off[first], window, off + headerLen, need - headerLen);
              ring.putUsed(this.#filled++, head, need);
              this.bytes += need - headerLen;
              burst.delivered[packet]++;
              delivered++;
              continue;
            }
          }
        }
      }
      const status = this.#enqueueScattered(ring, burst, packet);
      if (status < 0) {
        burst.delivered[packet]++;
        delivered++;
        this.bytes += need - headerLen;
      } else {
        this.drops[status]++;
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

  /** Lists one copy, flushing when the windows change or the list is full. */
  #copy(src: number, srcOff: number, dst: number, dstOff: number, len: number): void {
    if (src !== this.#src || dst !== this.#dst || this.#entries === MAX_COPY_ENTRIES) {
      this.#flush();
      this.#src = src;
      this.#dst = dst;
    }
    const { list } = this.#stage;
    const at = 3 * this.#entries++;
    list[at] = srcOff;
    list[at + 1] = dstOff;
    list[at + 2] = len;
  }

  #flush(): void {
    if (this.#entries === 0) return;
    this.#stage.flush(this.#windows[this.#src], this.#windows[this.#dst], this.#entries);
    this.#entries = 0;
  }

  /**
   * Delivers one packet of any number of pieces into chains of any layout, several where the ring is mergeable.
   * @returns −1 when delivered, else the DROP_ reason; the driver's buffers are then as they were
   */
  #enqueueScattered(ring: SplitRing, burst: Burst, packet: number): number {
    if (ring.fault !== FAULT_NONE) return DROP_FAULT;
    const need = burst.len[packet] + ring.headerLen;
    const buffers = this.#buffers;
    buffers.count = 0;
    let got = 0;
    let chains = 0;
    while (got < need) {
      const entry = this.#filled + chains;
      if (entry >= ring.ready) return DROP_NO_BUFFER;
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

/** A header that asks nothing of the driver: no offloads; num_buffers where there is one. */
function writeHeader(dv: DataView, off: number, headerLen: number): void {
  dv.setInt32(off, 0, true);
  dv.setInt32(off + 4, 0, true);
  if (headerLen === 12) dv.setInt32(off + 8, ONE_BUFFER, true);
  else dv.setInt16(off + 8, 0, true);
}

/** Byte `i` of such a header for a packet in `chains` chains. */
function headerByte(i: number, chains: number): number {
  if (i === 10) return chains & 0xff;
  return i === 11 ? chains >> 8 : 0;
}
