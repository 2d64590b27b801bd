/**
 * What a guest sends by its lane: its buffers become frames of the uplink where they lie. A buffer goes back to the guest when the kernel
 * has sent it, in order, exactly once.
 */
import { CopyStage } from '../mem/copy-stage.ts';
import type { WindowViews } from '../mem/window.ts';
import { LANE_SLOTS, PORT_SLOTS } from '../stats/counters.ts';
import { kickTransmit } from '../sys/xdp-socket.ts';
import { ETHHDR } from '../uapi/ip.ts';
import { BURST_SIZE, type Burst } from '../virtio-net/burst.ts';
import type { NetVring } from '../virtio-net/net-vring.ts';
import { FAULT_NONE } from '../virtqueue/fault.ts';
import { UsedPosition } from '../virtqueue/used-position.ts';
import { LaneCompletionRing, LaneTransmitRing } from './lane-rings.ts';
import type { LaneSpec } from './lane-spec.ts';
import { UmemMap } from './lane-umem.ts';

/** The frame goes on in the next element. C headers have it from Linux 6.6 on. */
const XDP_PKT_CONTD = 1;
/** Pieces of a frame: what the kernel puts into one (MAX_SKB_FRAGS), and fewer than the ring has for each. */
const MAX_PIECES = 4;
/** Elements of the rings for each frame. */
export const ELEMENTS_PER_FRAME = MAX_PIECES;
/** Of a completed address the lowest bit is lost, which the kernel has used for itself. */
const KEPT_BITS = ~1;
const TWO_32 = 2 ** 32;
const DONE = -1;

export class LaneTransmit {
  readonly #windows: readonly WindowViews[];
  readonly #own: WindowViews;
  readonly #spec: LaneSpec;
  readonly #counters: Float64Array;
  readonly #umem: UmemMap;
  readonly #ring: LaneTransmitRing;
  readonly #completions: LaneCompletionRing;
  readonly #copyStage = new CopyStage();
  readonly #used = new UsedPosition();
  readonly #mask: number;
  /** the frames that are on their way, oldest first: chain, slots of the ring, and elements that have not been sent */
  readonly #id: Int32Array;
  readonly #slots: Int32Array;
  readonly #elements: Int32Array;
  /** frames so far, and of these those that the guest has back */
  #taken = 0;
  #returned = 0;
  /** the elements that are on their way: address by halves, the upper one DONE once it is sent; and the frame each belongs to */
  readonly #elementMask: number;
  readonly #low: Int32Array;
  readonly #high: Int32Array;
  readonly #frame: Int32Array;
  #put = 0;
  #sent = 0;
  /** of the burst at hand */
  readonly #ofBurst = new Int32Array(BURST_SIZE);
  /** pieces of the frame at hand */
  readonly #pieceAt = new Float64Array(MAX_PIECES);
  readonly #pieceLen = new Int32Array(MAX_PIECES);

  constructor(spec: LaneSpec, windows: readonly WindowViews[], counters: Float64Array) {
    this.#windows = windows;
    this.#own = windows[spec.window.id];
    this.#spec = spec;
    this.#counters = counters;
    this.#umem = new UmemMap(spec.pieces);
    this.#ring = new LaneTransmitRing(this.#own, spec.tx);
    this.#completions = new LaneCompletionRing(this.#own, spec.completion);
    this.#mask = spec.txBuffers - 1;
    this.#id = new Int32Array(spec.txBuffers);
    this.#slots = new Int32Array(spec.txBuffers);
    this.#elements = new Int32Array(spec.txBuffers);
    this.#elementMask = spec.tx.size - 1;
    this.#low = new Int32Array(spec.tx.size);
    this.#high = new Int32Array(spec.tx.size);
    this.#frame = new Int32Array(spec.tx.size);
  }

  begin({ ring }: NetVring): void {
    this.#used.begin(ring);
  }

  /** Buffers that the guest has not back. */
  get outstanding(): number {
    return (this.#taken - this.#returned) | 0;
  }

  /** Buffers that may be taken besides. */
  get free(): number {
    return this.#spec.txBuffers - this.outstanding;
  }

  /** True while the kernel has frames that it has not sent. */
  get busy(): boolean {
    return this.#put !== this.#sent;
  }

  /** A burst has been taken from the ring: none of it is on its way yet. */
  open(): void {
    this.#ofBurst.fill(0);
  }

  /**
   * Sends packets list[from] … list[to − 1] of the burst, which ask nothing of their receiver. @param counters the uplink's
   * @returns how many were taken
   */
  send(burst: Burst, list: Int32Array, from: number, to: number, counters: Float64Array): number {
    const { len, delivered } = burst;
    const { chunk } = this.#spec;
    let taken = 0;
    let bytes = 0;
    for (let k = from; k < to; k++) {
      const packet = list[k];
      if (len[packet] > chunk || len[packet] < ETHHDR.size) {
        counters[PORT_SLOTS.rx_drop_too_big]++;
        continue;
      }
      this.#post(burst, packet);
      delivered[packet]++;
      bytes += len[packet];
      taken++;
    }
    this.#ring.publish();
    this.#counters[LANE_SLOTS.tx_posted] += taken;
    counters[PORT_SLOTS.rx_packets] += taken;
    counters[PORT_SLOTS.rx_bytes] += bytes;
    this.kick();
    return taken;
  }

  /** Lists a packet in the ring, in as many pieces as it lies in; one in too many is copied together. */
  #post(burst: Burst, packet: number): void {
    const frame = this.#taken + packet;
    let n = this.#pieces(burst, packet, this.#scratch(frame));
    if (n < 0) n = this.#gather(burst, packet, this.#scratch(frame));
    for (let i = 0; i < n; i++) {
      const at = this.#put & this.#elementMask;
      this.#put = (this.#put + 1) | 0;
      this.#low[at] = this.#pieceAt[i] & KEPT_BITS;
      this.#high[at] = this.#pieceAt[i] / TWO_32;
      this.#frame[at] = frame & this.#mask;
      this.#ring.add(this.#pieceAt[i], this.#pieceLen[i], i < n - 1 ? XDP_PKT_CONTD : 0);
    }
    this.#ofBurst[packet] = n;
  }

  /** Where in the lane's own window a frame has room. */
  #scratch(frame: number): number {
    return this.#spec.scratchOff + this.#spec.chunk * (frame & this.#mask);
  }

  /** Finds where the packet's pieces lie in the UMEM; what is the switch's own, its front, is copied to `scratch`. @returns how many, or −1 */
  #pieces({ segments, first }: Burst, packet: number, scratch: number): number {
    const { window, off, len } = segments;
    const end = first[packet + 1];
    let own = scratch;
    let n = 0;
    for (let s = first[packet]; s < end; s++) {
      if (len[s] === 0) continue;
      if (n === MAX_PIECES) return -1;
      let at = this.#umem.find(window[s], off[s], len[s]);
      if (at < 0) {
        copyShort(this.#windows[window[s]], off[s], this.#own, own, len[s]);
        at = this.#umem.find(this.#own.id, own, len[s]);
        own += len[s];
      }
      this.#pieceAt[n] = at;
      this.#pieceLen[n++] = len[s];
    }
    return n;
  }

  /** Copies a packet together at `scratch`. @returns 1: it is one piece now */
  #gather({ segments, first, len }: Burst, packet: number, scratch: number): number {
    const { list } = this.#copyStage;
    const end = first[packet + 1];
    let at = scratch;
    for (let s = first[packet]; s < end; s++) {
      list[0] = segments.off[s];
      list[1] = at;
      list[2] = segments.len[s];
      this.#copyStage.flush(this.#windows[segments.window[s]], this.#own, 1);
      at += segments.len[s];
    }
    this.#pieceAt[0] = this.#umem.find(this.#own.id, scratch, len[packet]);
    this.#pieceLen[0] = len[packet];
    this.#counters[LANE_SLOTS.tx_copied]++;
    return 1;
  }

  /** Stage 4: the burst's buffers are taken; those that are not on their way go back as soon as their predecessors have. */
  close({ count, id, slots, slotCount }: Burst, net: NetVring): void {
    for (let i = 0; i < count; i++) {
      const at = (this.#taken + i) & this.#mask;
      this.#id[at] = id[i];
      this.#slots[at] = net.ring.packed ? slots[i] : 1;
      this.#elements[at] = this.#ofBurst[i];
    }
    this.#taken = (this.#taken + count) | 0;
    this.#used.take(net.ring, slotCount);
    this.reap(net);
  }

  /** Gives the guest back what the kernel has sent. */
  reap(net: NetVring): void {
    const completions = this.#completions;
    const n = completions.ready;
    if (n > 0) {
      for (let i = 0; i < n; i++) this.#complete(completions.low(i) & KEPT_BITS, completions.high(i));
      completions.advance(n);
    }
    if (this.#returned !== this.#taken && this.#elements[this.#returned & this.#mask] === 0) this.#giveBack(net);
  }

  /** An element has been sent. Mostly it is the oldest. */
  #complete(low: number, high: number): void {
    for (let at = this.#sent; at !== this.#put; at = (at + 1) | 0) {
      const slot = at & this.#elementMask;
      if (this.#low[slot] !== low || this.#high[slot] !== high) continue;
      this.#high[slot] = DONE;
      const left = --this.#elements[this.#frame[slot]];
      if (left === 0) this.#counters[LANE_SLOTS.tx_completed]++;
      break;
    }
    while (this.#sent !== this.#put && this.#high[this.#sent & this.#elementMask] === DONE)
      this.#sent = (this.#sent + 1) | 0;
  }

  #giveBack(net: NetVring): void {
    const { ring } = net;
    let slots = 0;
    if (ring.fault !== FAULT_NONE) return;
    this.#used.turn(ring);
    while (this.#returned !== this.#taken) {
      const at = this.#returned & this.#mask;
      if (this.#elements[at] !== 0) break;
      ring.putUsed(slots, this.#id[at], 0);
      slots += this.#slots[at];
      this.#returned = (this.#returned + 1) | 0;
    }
    ring.publish(slots, false);
    ring.notify();
    this.#used.turnBack(ring, slots);
  }

  /** Has the kernel send what waits, as long as it does. @returns frames' elements that it has left */
  kick(): number {
    const ring = this.#ring;
    let waiting = ring.waiting;
    while (waiting > 0 && ring.needsKick) {
      kickTransmit(this.#spec.fd);
      const left = ring.waiting;
      if (left >= waiting) return left;
      waiting = left;
    }
    return waiting;
  }

  /** The socket is not used any more: the guest has everything back. */
  abandon(net: NetVring): void {
    this.#elements.fill(0);
    if (this.#returned !== this.#taken) this.#giveBack(net);
  }
}

/** Copies a front: some twenty bytes. */
function copyShort(from: WindowViews, fromOff: number, to: WindowViews, toOff: number, len: number): void {
  for (let i = 0; i < len; i++) to.u8[toOff + i] = from.u8[fromOff + i];
}
