/**
 * Stage 3 of a packet's way: reserves the driver's buffers for some packets of a burst, copies them there straight from the
 * source's memory, publishes them at once and notifies once.
 */
import { CopyList } from '../mem/copy-list.ts';
import type { DirtyLog } from '../mem/dirty-log.ts';
import type { WindowViews } from '../mem/window.ts';
import { VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_MRG_RXBUF } from '../uapi/virtio-net.ts';
import { VRING_DESC_F_WRITE } from '../uapi/virtio-ring.ts';
import { CHAIN_FULL, CHAIN_MISS, CHAIN_NONE } from '../virtqueue/chain.ts';
import { FAULT_CHAIN_LOOP, FAULT_NONE } from '../virtqueue/fault.ts';
import { SegmentList } from '../virtqueue/segments.ts';
import { type Burst, HEADER_BYTES } from './burst.ts';
import type { NetVring } from './net-vring.ts';
import { OFFLOAD_FULL, type OffloadStage } from './offload-stage.ts';
import type { RingStage } from './ring-stage.ts';
import { tallyPacket } from './tally.ts';

/** Chains that one mergeable packet may take; more is a buffer too small to be useful. */
const MAX_BUFFERS = 256;

/** Why a packet was not enqueued, as a slot of `Enqueuer.drops`. */
export const DROP_NO_BUFFER = 0;
export const DROP_TOO_BIG = 1;
export const DROP_FAULT = 2;
export const DROP_MISS = 3;
export const DROP_BAD_OFFLOAD = 4;
const DROPS = 5;

const DELIVERED = -1;
const { off: HDR } = VIRTIO_NET_HDR_MRG_RXBUF;

/** A thread's means to enqueue packets of its burst: scratch that is made once, and what the last call did. */
export class Enqueuer {
  readonly #ringStage: RingStage;
  readonly #copies: CopyList;
  readonly #offload: OffloadStage;
  readonly #windows: readonly WindowViews[];
  /** one frame that the offload stage has made */
  readonly #made = new SegmentList();
  readonly #buffers = new SegmentList();
  /** the chains that hold the packet at hand: what their used elements say, and the slots they take */
  readonly #chainId = new Int32Array(MAX_BUFFERS);
  readonly #chainLen = new Int32Array(MAX_BUFFERS);
  readonly #chainSlots = new Int32Array(MAX_BUFFERS);
  readonly #header = new Uint8Array(HEADER_BYTES);
  /** packets not delivered by the last call, by reason */
  readonly drops = new Int32Array(DROPS);
  /** slots filled but not published */
  #filled = 0;
  /** the ring has been looked at again for want of buffers: once a call is enough */
  #looked = false;

  /** `windows` is the thread's table, by window id. */
  constructor(ringStage: RingStage, offload: OffloadStage, windows: readonly WindowViews[]) {
    this.#ringStage = ringStage;
    this.#offload = offload;
    this.#windows = windows;
    this.#copies = new CopyList(windows);
  }

  /**
   * Delivers packets `list[from]` … `list[to − 1]` of the burst, at most 32, to the vring, in that order. A packet that finds no
   * buffer or does not fit is dropped and counted; a malformed chain sets `ring.fault`, and the rest is dropped.
   * @returns packets delivered; `vring.packets` and `vring.bytes` say what that came to
   */
  enqueue(vring: NetVring, list: Int32Array, from: number, to: number): number {
    const { burst } = this.#ringStage;
    const { ring } = vring;
    const begin = list === burst.all ? from : 0;
    const end = begin + to - from;
    burst.order = list === burst.all ? list : burst.list;
    if (list !== burst.all) for (let i = 0; i < end; i++) burst.list[i] = list[from + i];
    const { drops } = this;
    for (let reason = 0; reason < DROPS; reason++) drops[reason] = 0;
    this.#filled = 0;
    this.#looked = ring.ready < end - begin;
    if (this.#looked) ring.refresh();
    let delivered = 0;
    let i = begin;
    while (i < end) {
      const plain = this.#fillPlain(vring, burst, i, end);
      delivered += plain - i;
      i = plain;
      if (i === end) break;
      const packet = burst.order[i++];
      const status = this.#fillAny(vring, burst, packet);
      if (status >= 0) drops[status]++;
      else {
        burst.delivered[packet]++;
        delivered++;
      }
    }
    this.#copies.flush();
    this.#offload.reset();
    vring.count(burst.tally);
    if (this.#filled > 0) {
      ring.publish(this.#filled, true);
      ring.notify();
    }
    return delivered;
  }

  /** Delivers packets from order[from] on that go the plain way. @returns the first that does not, or `n` */
  #fillPlain(vring: NetVring, burst: Burst, from: number, n: number): number {
    const { ring } = vring;
    const end = Math.min(n, from + ring.ready - this.#filled);
    // what is logged must be marked when it has been written, and what is recorded before: that is the general way's business
    if (from >= end || ring.fault !== FAULT_NONE || ring.log !== undefined || ring.records !== undefined) return from;
    const src = this.#windows[burst.segments.window[burst.first[burst.order[from]]]];
    if (src === undefined) return from;
    const to = this.#ringStage.fill(vring, src, from, end, this.#filled);
    this.#filled += to - from;
    return to;
  }

  /** Delivers one packet of any kind. @returns DELIVERED, or the DROP_ reason */
  #fillAny(vring: NetVring, burst: Burst, packet: number): number {
    const { first, len, needs, segments } = burst;
    if ((needs[packet] & ~vring.accepts) !== 0) return this.#fillMade(vring, burst, packet);
    this.#header.fill(0);
    if (needs[packet] !== 0) this.#passHeader(burst, packet);
    const status = this.#fillFrame(vring, segments, first[packet], first[packet + 1], len[packet]);
    if (status === DELIVERED) tallyPacket(burst, packet, len[packet]);
    return status;
  }

  /** The packet's own header, up to num_buffers; of its flags only what has been checked. */
  #passHeader({ headerBytes }: Burst, packet: number): void {
    for (let i = 0; i < HDR.num_buffers; i++) this.#header[i] = headerBytes[HEADER_BYTES * packet + i];
    this.#header[HDR.flags] &= VIRTIO_NET_HDR_F_NEEDS_CSUM;
  }

  /**
   * Delivers what the offload stage makes of a packet that the receiver does not take as it is.
   * @returns DELIVERED, or why some frame of it, and all behind that one, were not
   */
  #fillMade(vring: NetVring, burst: Burst, packet: number): number {
    const offload = this.#offload;
    let n = offload.convertPacket(this.#windows, burst, packet);
    if (n === OFFLOAD_FULL) {
      this.#copies.flush();
      offload.reset();
      n = offload.convertPacket(this.#windows, burst, packet);
    }
    if (n < 0) return DROP_BAD_OFFLOAD;
    const made = this.#made;
    for (let frame = offload.count - n; frame < offload.count; frame++) {
      made.count = 0;
      made.push(offload.window, offload.off[frame], offload.len[frame]);
      this.#header.fill(0);
      const status = this.#fillFrame(vring, made, 0, 1, offload.len[frame]);
      if (status !== DELIVERED) return status;
      tallyPacket(burst, packet, offload.len[frame]);
    }
    return DELIVERED;
  }

  /**
   * Delivers one frame, `segments` from `first` to `end` − 1, into chains of any layout, several where the ring is mergeable; in
   * front of it what `#header` holds. @returns DELIVERED, or the DROP_ reason; the driver's buffers are then as they were
   */
  #fillFrame(vring: NetVring, segments: SegmentList, first: number, end: number, len: number): number {
    const { ring, headerLen, mergeable } = vring;
    if (ring.fault !== FAULT_NONE) return DROP_FAULT;
    const need = len + headerLen;
    const buffers = this.#buffers;
    buffers.count = 0;
    let got = 0;
    let chains = 0;
    let slots = 0;
    while (got < need) {
      const bytes = this.#chainAt(vring, this.#filled + slots);
      if (bytes < 0) return this.#dropReason(vring, bytes, chains);
      if (chains === 0 && bytes < headerLen) return DROP_TOO_BIG;
      if (bytes < need && !mergeable) return DROP_TOO_BIG;
      if (chains === MAX_BUFFERS) return DROP_TOO_BIG;
      this.#chainId[chains] = ring.chainId;
      this.#chainLen[chains] = Math.min(bytes, need - got);
      this.#chainSlots[chains] = ring.chainSlots;
      slots += ring.chainSlots;
      got += bytes;
      chains++;
    }
    if (ring.records !== undefined && !ring.begin(this.#filled, this.#chainId, this.#chainSlots, chains))
      return DROP_FAULT;
    this.#scatter(segments, first, end, headerLen, chains);
    if (ring.log !== undefined) this.#mark(ring.log, need);
    let ahead = this.#filled;
    for (let c = 0; c < chains; c++) {
      ring.putUsed(ahead, this.#chainId[c], this.#chainLen[c]);
      ahead += this.#chainSlots[c];
    }
    this.#filled = ahead;
    return DELIVERED;
  }

  /** Marks the first `need` bytes of the buffers listed in `#buffers`, once they have been written. */
  #mark(log: DirtyLog, need: number): void {
    this.#copies.flush();
    const { window, off, len } = this.#buffers;
    let left = need;
    for (let b = 0; left > 0; b++) {
      log.mark(window[b], off[b], Math.min(left, len[b]));
      left -= len[b];
    }
  }

  /** As Vring.chainAt, looking for more buffers once. */
  #chainAt({ ring }: NetVring, ahead: number): number {
    if (ahead >= ring.ready && !this.#looked) {
      this.#looked = true;
      ring.refresh();
    }
    return ring.fault === FAULT_NONE ? ring.chainAt(ahead, VRING_DESC_F_WRITE, this.#buffers) : CHAIN_NONE;
  }

  /** Why a packet that has `chains` chains already gets no more. */
  #dropReason({ ring }: NetVring, status: number, chains: number): number {
    if (status === CHAIN_MISS) return DROP_MISS;
    if (status === CHAIN_FULL) {
      if (chains > 0) return DROP_TOO_BIG;
      ring.fault = FAULT_CHAIN_LOOP;
    }
    return ring.fault === FAULT_NONE ? DROP_NO_BUFFER : DROP_FAULT;
  }

  /** Writes the header and the frame's pieces over the buffers listed in `#buffers`, which hold all of it. */
  #scatter(segments: SegmentList, first: number, end: number, headerLen: number, chains: number): void {
    const buffers = this.#buffers;
    const header = this.#header;
    header[HDR.num_buffers] = chains & 0xff;
    header[HDR.num_buffers + 1] = chains >> 8;
    let b = 0;
    let room = buffers.len[0];
    let off = buffers.off[0];
    for (let i = 0; i < headerLen; i++) {
      while (room === 0) {
        b++;
        room = buffers.len[b];
        off = buffers.off[b];
      }
      this.#windows[buffers.window[b]].u8[off++] = header[i];
      room--;
    }
    for (let s = first; s < end; s++) {
      let from = segments.off[s];
      let left = segments.len[s];
      while (left > 0) {
        while (room === 0) {
          b++;
          room = buffers.len[b];
          off = buffers.off[b];
        }
        const part = Math.min(left, room);
        this.#copies.add(segments.window[s], from, buffers.window[b], off, part);
        from += part;
        off += part;
        left -= part;
        room -= part;
      }
    }
  }
}
