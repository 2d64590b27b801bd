/**
 * A virtio-user card on the thread that moves its packets: what a vhost-user back end puts into receive buffers is received, and stays
 * there until the burst is complete; what is transmitted is copied into transmit buffers. The connection is the main thread's
 * (virtio-user-device.ts). A back end that breaks the rules of a ring ends its use; the main thread sees to the rest.
 * @see VIRTIO 1.2 §5.1.6
 */
import { CopyStage } from '../mem/copy-stage.ts';
import type { WindowViews } from '../mem/window.ts';
import { PORT_SLOTS } from '../stats/counters.ts';
import { ETHHDR } from '../uapi/ip.ts';
import { VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_MRG_RXBUF } from '../uapi/virtio-net.ts';
import { BAD_OFFLOAD, type Burst, FRONT_BYTES, HEADER_BYTES } from '../virtio-net/burst.ts';
import { NEEDS_MALFORMED, needsOf } from '../virtio-net/offload.ts';
import type { DevicePort, DeviceTools } from './device-port.ts';
import { HeldPair } from './held-pair.ts';
import { FAULT_INCOMPLETE, FAULT_NO_HEADER, FAULT_NUM_BUFFERS } from './user-fault.ts';
import { clearHeader, UserFrames } from './user-frames.ts';
import type { VirtioUserSpec } from './user-pair.ts';
import type { UserRing } from './user-ring.ts';
import { UserStage } from './user-stage.ts';

const { off: HDR } = VIRTIO_NET_HDR_MRG_RXBUF;
/** Buffers that a frame may come in: 128 KiB. */
const MAX_BUFFERS = 64;

export class VirtioUserPort implements DevicePort {
  readonly id: number;
  readonly counters: Float64Array;
  readonly queues: number;
  readonly eventFds: readonly number[];
  /** the transmit queue that `transmit` uses */
  txQueue = 0;
  readonly #burst: Burst;
  readonly #windows: readonly WindowViews[];
  readonly #copyStage = new CopyStage();
  readonly #frames: UserFrames;
  readonly #pairs: readonly HeldPair[];
  readonly #window: number;
  readonly #dv: DataView;
  readonly #headerLen: number;
  readonly #mergeable: boolean;
  readonly #accepts: number;
  readonly #maySend: number;
  /** bytes of the frames of the last burst */
  #bytes = 0;

  /**
   * @param counters a block of PORT_SLOTS
   * @param spec its window is among those of `tools`
   */
  constructor(id: number, counters: Float64Array, spec: VirtioUserSpec, tools: DeviceTools) {
    const window = tools.windows[spec.windows[0].id];
    this.id = id;
    this.counters = counters;
    this.#burst = tools.ringStage.burst;
    this.#windows = tools.windows;
    this.#window = window.id;
    this.#dv = window.dv;
    this.#headerLen = spec.headerLen;
    this.#mergeable = spec.mergeable;
    this.#accepts = spec.accepts;
    this.#maySend = spec.maySend;
    const sizes = spec.pairs.flatMap(({ rx, tx }) => [rx.size, tx.size]);
    const stage = UserStage.for(tools.ringStage, window, sizes);
    this.#pairs = spec.pairs.map((plan) => new HeldPair(plan, window, stage));
    this.#frames = new UserFrames(spec, this.#burst, this.#windows, this.#copyStage, stage);
    this.queues = spec.pairs.length;
    this.eventFds = spec.pairs.map(({ rxCallFd }) => rxCallFd);
  }

  get canTransmit(): boolean {
    return this.#pairs.some((pair) => pair.active);
  }

  receive(queue = 0): number {
    const burst = this.#burst;
    burst.clear();
    const pair = this.#pairs[queue];
    if (!pair.held()) return 0;
    const { rx } = pair;
    if (pair.calls) pair.quiet();
    if (rx.count < burst.limit) rx.reap(burst.limit - rx.count);
    if (rx.fault !== 0 || rx.count === 0) {
      if (rx.fault !== 0) pair.fail(rx);
      return 0;
    }
    const n = this.#list(pair, Math.min(rx.count, burst.limit));
    if (rx.fault !== 0) {
      burst.segments.count = 0;
      pair.fail(rx);
      return 0;
    }
    burst.count = n;
    this.counters[PORT_SLOTS.tx_packets] += n;
    this.counters[PORT_SLOTS.tx_bytes] += this.#bytes;
    return n;
  }

  /** Lists what lies in the first `have` buffers of our own, a frame in each, as the burst. Sets the ring's fault. @returns frames */
  #list(pair: HeldPair, have: number): number {
    const { first, segments } = this.#burst;
    const i = this.#frames.list(pair.rx, have);
    first[i] = i;
    segments.count = i;
    this.#bytes = this.#frames.bytes;
    pair.consumed = i;
    return i === have ? i : this.#listAny(pair, have, i);
  }

  /** The same for frames of any kind, from buffer and packet `n` on. */
  #listAny(pair: HeldPair, have: number, n: number): number {
    const burst = this.#burst;
    const { rx } = pair;
    const headerLen = this.#headerLen;
    const dv = this.#dv;
    let used = n;
    let packet = n;
    while (used < have) {
      const { own, ownLen, head, mask, buffersOff, stride } = rx;
      const at = (head + used) & mask;
      const buffer = buffersOff + own[at] * stride;
      if (ownLen[at] < headerLen) rx.fault = FAULT_NO_HEADER;
      // Without MRG_RXBUF drivers do not look at num_buffers; DPDK leaves it 0 then, where §5.1.6.4.1 demands 1.
      const buffers = this.#mergeable ? dv.getUint16(buffer + HDR.num_buffers, true) : 1;
      if (buffers === 0 || buffers > MAX_BUFFERS || buffers > rx.size) rx.fault ||= FAULT_NUM_BUFFERS;
      if (rx.fault !== 0) return 0;
      if (used + buffers > have) {
        if (packet > 0) break;
        if (rx.count < buffers) rx.reap(buffers - rx.count);
        // the device makes all of a frame's buffers known at once (§5.1.6.4.1)
        if (rx.count < buffers) rx.fault ||= FAULT_INCOMPLETE;
        if (rx.fault !== 0) return 0;
      }
      let len = 0;
      burst.first[packet] = burst.segments.count;
      for (let i = 0; i < buffers; i++) {
        const k = (head + used + i) & mask;
        const skip = i === 0 ? headerLen : 0;
        burst.segments.push(this.#window, buffersOff + own[k] * stride + skip, ownLen[k] - skip);
        len += ownLen[k] - skip;
      }
      burst.len[packet] = len;
      this.#copyFront(packet, burst.first[packet]);
      if (this.#accepts !== 0) this.#readHeader(packet, buffer);
      this.#bytes += len;
      used += buffers;
      packet++;
    }
    burst.first[packet] = burst.segments.count;
    pair.consumed = used;
    return packet;
  }

  /** Says what a packet needs of its receiver, from its header at `off`; one that makes no sense becomes BAD_OFFLOAD. */
  #readHeader(packet: number, off: number): void {
    const { header, headerBytes, frontBytes, len, needs } = this.#burst;
    const { u8 } = this.#windows[this.#window];
    const at = HEADER_BYTES * packet;
    for (let i = 0; i < this.#headerLen; i++) headerBytes[at + i] = u8[off + i];
    const flags = header.getUint8(at + HDR.flags);
    const gsoType = header.getUint8(at + HDR.gso_type);
    if (((flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) | gsoType) === 0) return;
    const type = FRONT_BYTES * packet + ETHHDR.off.h_proto;
    const found = needsOf(
      flags,
      gsoType,
      header.getUint16(at + HDR.gso_size, true),
      header.getUint16(at + HDR.csum_start, true),
      header.getUint16(at + HDR.csum_offset, true),
      len[packet],
      (frontBytes[type] << 8) | frontBytes[type + 1],
      this.#accepts,
    );
    if (found === NEEDS_MALFORMED) {
      len[packet] = BAD_OFFLOAD;
      return;
    }
    needs[packet] = found;
    this.#burst.offloads = true;
  }

  /** The first bytes of a packet whose segments begin at `from`; what it lacks is zero. */
  #copyFront(packet: number, from: number): void {
    const { frontBytes, segments } = this.#burst;
    const { u8 } = this.#windows[this.#window];
    let at = FRONT_BYTES * packet;
    const end = at + FRONT_BYTES;
    for (let s = from; s < segments.count && at < end; s++) {
      const n = Math.min(segments.len[s], end - at);
      for (let k = 0; k < n; k++) frontBytes[at++] = u8[segments.off[s] + k];
    }
    while (at < end) frontBytes[at++] = 0;
  }

  complete(queue = 0): void {
    const pair = this.#pairs[queue];
    if (!pair.active || pair.consumed === 0) return;
    const wanted = pair.rx.post(pair.consumed);
    pair.consumed = 0;
    if (wanted) pair.kick(pair.plan.rxKickFd);
  }

  /**
   * Copies packets into transmit buffers, in order, until there is none left. One that cannot be sent at all, too long or with offloads,
   * is passed over and counted. @returns packets dealt with, from the first on: the rest may be offered again
   */
  transmit(list: Int32Array, from: number, to: number): number {
    const { counters } = this;
    const pair = this.#pairs[this.txQueue];
    if (!pair.held()) {
      counters[PORT_SLOTS.rx_drop_not_ready] += to - from;
      return 0;
    }
    const { tx } = pair;
    if (tx.count < to - from) tx.reap(tx.size);
    if (tx.fault !== 0) {
      counters[PORT_SLOTS.rx_drop_fault] += to - from;
      pair.fail(tx);
      return 0;
    }
    return to - from - this.#send(pair, list, from, to);
  }

  /** @returns packets that have found no buffer */
  #send(pair: HeldPair, list: Int32Array, from: number, to: number): number {
    const { counters } = this;
    const { tx } = pair;
    let k = this.#frames.place(tx, list, from, Math.min(to, from + tx.count));
    let placed = k - from;
    this.#bytes = this.#frames.bytes;
    for (; k < to; k++) {
      const fits = this.#fits(tx, list[k]);
      if (fits && placed === tx.count) break;
      if (fits) this.#placeAny(tx, list[k], placed++);
    }
    if (tx.post(placed)) pair.kick(pair.plan.txKickFd);
    counters[PORT_SLOTS.rx_packets] += placed;
    counters[PORT_SLOTS.rx_bytes] += this.#bytes;
    if (k < to) counters[PORT_SLOTS.rx_drop_no_buffer] += to - k;
    return to - k;
  }

  /** True if the packet can be sent at all; else it is counted. */
  #fits(tx: UserRing, packet: number): boolean {
    const { len, needs } = this.#burst;
    const maxLen = this.#frames.maxLen(tx);
    if (len[packet] >= 0 && len[packet] <= maxLen && (needs[packet] & ~this.#maySend) === 0) return true;
    this.counters[len[packet] > maxLen ? PORT_SLOTS.rx_drop_too_big : PORT_SLOTS.rx_drop_bad_offload]++;
    return false;
  }

  /** Copies a packet of any layout into the buffer `n` behind the first of our own. */
  #placeAny(tx: UserRing, packet: number, n: number): void {
    const { first, len, delivered, segments } = this.#burst;
    const { list: copies } = this.#copyStage;
    const at = (tx.head + n) & tx.mask;
    let dst = tx.buffersOff + tx.own[at] * tx.stride + this.#headerLen;
    let src = segments.window[first[packet]];
    let entries = 0;
    for (let s = first[packet]; s < first[packet + 1]; s++) {
      if (segments.window[s] !== src) {
        this.#flush(src, entries);
        entries = 0;
        src = segments.window[s];
      }
      copies[3 * entries] = segments.off[s];
      copies[3 * entries + 1] = dst;
      copies[3 * entries + 2] = segments.len[s];
      dst += segments.len[s];
      entries++;
    }
    this.#flush(src, entries);
    if (this.#maySend !== 0) this.#writeHeader(packet, tx.buffersOff + tx.own[at] * tx.stride);
    tx.ownLen[at] = len[packet] + this.#headerLen;
    delivered[packet]++;
    this.#bytes += len[packet];
  }

  /** Writes a packet's header at `off`: what it needs, and of its flags only what has been checked. */
  #writeHeader(packet: number, off: number): void {
    const { headerBytes, needs } = this.#burst;
    const { u8 } = this.#windows[this.#window];
    clearHeader(this.#dv, off);
    if (needs[packet] === 0) return;
    for (let i = 0; i < HDR.num_buffers; i++) u8[off + i] = headerBytes[HEADER_BYTES * packet + i];
    u8[off + HDR.flags] &= VIRTIO_NET_HDR_F_NEEDS_CSUM;
  }

  #flush(src: number, entries: number): void {
    this.#copyStage.flush(this.#windows[src], this.#windows[this.#window], entries);
  }

  prepareSleep(): boolean {
    for (const pair of this.#pairs) {
      if (!pair.held()) continue;
      pair.calls = true;
      if (!pair.rx.enableCalls()) return false;
    }
    return true;
  }

  /** Nothing is held back; but the main thread may wait to have the rings back. */
  drain(): void {
    for (const pair of this.#pairs) pair.held();
  }

  close(): void {
    for (const pair of this.#pairs) pair.close();
  }
}
