/**
 * net_af_packet on the thread that uses it: a network interface of Linux by packet sockets. Received frames stay in the ring that
 * the kernel shares; what is sent the kernel takes from where it lies, a burst in one call.
 *
 * Frames that are longer than a slot of the ring, segments of a TCP stream joined together above all, come by the socket's queue in
 * the same order: then a burst costs one more call.
 * @see packet(7)
 */

import type { WindowHandle, WindowViews } from '../mem/window.ts';
import { WindowAddresses } from '../mem/window-address.ts';
import { PORT_SLOTS } from '../stats/counters.ts';
import { addressOf } from '../sys/libc.ts';
import { MessageBatch } from '../sys/message-batch.ts';
import { missedFrames } from '../sys/packet-socket.ts';
import { ETH_P_8021Q } from '../uapi/ip.ts';
import {
  PACKET_OUTGOING,
  SOCKADDR_LL,
  TP_STATUS_COPY,
  TP_STATUS_KERNEL,
  TP_STATUS_USER,
  TP_STATUS_VLAN_TPID_VALID,
  TP_STATUS_VLAN_VALID,
  TPACKET2_ADDRESS_OFF,
  TPACKET2_HDR,
} from '../uapi/packet.ts';
import { BURST_SEGMENTS, BURST_SIZE } from '../virtio-net/burst.ts';
import { MAX_GSO_BYTES } from '../virtio-net/offload-stage.ts';
import type { DevicePort, DeviceSpec, DeviceTools } from './device-port.ts';
import { KERNEL_HEADER_BYTES, putFrame, setTag, writeHeader } from './kernel-frame.ts';
import { MadeFrames } from './made-frames.ts';
import { SendOutcome } from './send-outcome.ts';

const { off: SLOT } = TPACKET2_HDR;
const PKTTYPE_OFF = TPACKET2_ADDRESS_OFF + SOCKADDR_LL.off.sll_pkttype;
const STATUS_WORD = SLOT.tp_status / 4;
const LEN_WORD = SLOT.tp_len / 4;
const SNAPLEN_WORD = SLOT.tp_snaplen / 4;

/** Room for a frame of the socket's queue: header, and the longest one there is; whole cache lines. */
const BIG_BYTES = Math.ceil((KERNEL_HEADER_BYTES + MAX_GSO_BYTES) / 64) * 64;
/** What a queue has in the window behind its ring: room for a burst of long frames. */
export const QUEUE_EXTRA_BYTES = BURST_SIZE * BIG_BYTES;

/** A receive queue: a socket, and what of the port's window is its own. */
export interface AfPacketQueue {
  readonly fd: number;
  /** where in the window the ring is; behind it are QUEUE_EXTRA_BYTES */
  readonly ringOff: number;
  readonly frames: number;
  readonly frameBytes: number;
}

/** What an lcore makes its port from. The sockets stay the main thread's. */
export interface AfPacketSpec extends DeviceSpec {
  readonly window: WindowHandle;
  readonly queues: readonly AfPacketQueue[];
  readonly sendFd: number;
  /** where in the window this lcore has MADE_BYTES */
  readonly madeOff: number;
  /** NEED_… that the kernel takes undone */
  readonly accepts: number;
}

/** The receive side of a socket. */
class Receiver {
  readonly fd: number;
  readonly #views: WindowViews;
  readonly #ringOff: number;
  readonly #frames: number;
  readonly #frameBytes: number;
  readonly #bigOff: number;
  readonly #big = new MessageBatch(BURST_SIZE, BURST_SIZE);
  /** the slot that the kernel fills next */
  #next = 0;
  /** slots of the burst at hand, which end before `#next` */
  #taken = 0;
  /** frames that were lost on their way to us, since they were last asked for */
  lost = 0;

  constructor({ fd, ringOff, frames, frameBytes }: AfPacketQueue, views: WindowViews, addresses: WindowAddresses) {
    this.fd = fd;
    this.#views = views;
    this.#ringOff = ringOff;
    this.#frames = frames;
    this.#frameBytes = frameBytes;
    this.#bigOff = ringOff + frames * frameBytes;
    for (let i = 0; i < BURST_SIZE; i++) {
      this.#big.begin();
      this.#big.add(addresses.of(views.id, this.#bigOff + i * BIG_BYTES), BIG_BYTES);
    }
  }

  #slotOff(slot: number): number {
    return this.#ringOff + slot * this.#frameBytes;
  }

  /** The slot's status, read before what is in it. */
  #status(slot: number): number {
    return Atomics.load(this.#views.i32, (this.#slotOff(slot) >> 2) + STATUS_WORD);
  }

  get ready(): boolean {
    return (this.#status(this.#next) & TP_STATUS_USER) !== 0;
  }

  /** Fills the burst. */
  receive(tools: DeviceTools): void {
    const { burst } = tools.ringStage;
    let slots = 0;
    let big = 0;
    let slot = this.#next;
    for (; slots < BURST_SIZE; slots++) {
      const status = this.#status(slot);
      if ((status & TP_STATUS_USER) === 0) break;
      if ((status & TP_STATUS_COPY) !== 0) big++;
      slot = slot + 1 === this.#frames ? 0 : slot + 1;
    }
    if (slots === 0) return;
    const got = big === 0 ? 0 : this.#receiveBig(big);
    slot = this.#next;
    big = 0;
    for (let i = 0; i < slots; i++) {
      const off = this.#slotOff(slot);
      const word = off >> 2;
      const status = this.#views.i32[word + STATUS_WORD];
      const len = this.#views.i32[word + LEN_WORD];
      const at = (status & TP_STATUS_COPY) !== 0 ? this.#queued(big++, got, len) : this.#inSlot(off, len);
      // an old kernel shows a group of sockets what we send ourselves
      if (this.#views.u8[off + PKTTYPE_OFF] !== PACKET_OUTGOING) {
        if (at < 0) this.lost++;
        else {
          putFrame(burst, this.#views, at, len, at - KERNEL_HEADER_BYTES);
          if ((status & TP_STATUS_VLAN_VALID) !== 0) this.#addTag(tools, off, status);
        }
      }
      slot = slot + 1 === this.#frames ? 0 : slot + 1;
    }
    this.#next = slot;
    this.#taken = slots;
  }

  /** Where the frame in a slot begins, or −1 if it is not all there. */
  #inSlot(off: number, len: number): number {
    if (this.#views.i32[(off >> 2) + SNAPLEN_WORD] !== len) return -1;
    return off + this.#views.dv.getUint16(off + SLOT.tp_mac, true);
  }

  /** Where frame `i` of the `got` that came by the socket's queue begins, or −1 if it is not there. */
  #queued(i: number, got: number, len: number): number {
    if (i >= got || this.#big.bytesOf(i) !== KERNEL_HEADER_BYTES + len) return -1;
    return this.#bigOff + i * BIG_BYTES + KERNEL_HEADER_BYTES;
  }

  /** Takes the next `n` frames of the socket's queue. @returns how many came */
  #receiveBig(n: number): number {
    let got = this.#big.receive(this.fd, n);
    // a pending error, that the interface was down, comes before the frames, once
    if (got < 0) got = this.#big.receive(this.fd, n);
    return Math.max(got, 0);
  }

  /** The kernel takes every tag off. */
  #addTag({ ringStage: { burst } }: DeviceTools, off: number, status: number): void {
    const { dv } = this.#views;
    const tpid = (status & TP_STATUS_VLAN_TPID_VALID) !== 0 ? dv.getUint16(off + SLOT.tp_vlan_tpid, true) : ETH_P_8021Q;
    const tci = dv.getUint16(off + SLOT.tp_vlan_tci, true);
    setTag(burst, tpid, tci);
  }

  /** Gives the slots of the burst back. */
  complete(): void {
    let slot = this.#next - this.#taken;
    if (slot < 0) slot += this.#frames;
    for (let i = 0; i < this.#taken; i++) {
      // after all that was read of the slot
      Atomics.store(this.#views.i32, (this.#slotOff(slot) >> 2) + STATUS_WORD, TP_STATUS_KERNEL);
      slot = slot + 1 === this.#frames ? 0 : slot + 1;
    }
    this.#taken = 0;
  }
}

export class AfPacketPort implements DevicePort {
  readonly id: number;
  readonly counters: Float64Array;
  readonly queues: number;
  readonly eventFds: readonly number[];
  readonly canTransmit = true;
  readonly #tools: DeviceTools;
  readonly #receivers: readonly Receiver[];
  readonly #addresses: WindowAddresses;
  readonly #sendFd: number;
  readonly #batch = new MessageBatch(BURST_SIZE, BURST_SIZE + BURST_SEGMENTS);
  readonly #headers = new Uint8Array(16 * BURST_SIZE);
  readonly #headersAddress: number;
  readonly #outcome: SendOutcome;
  readonly #made: MadeFrames;
  readonly #accepts: number;

  constructor(id: number, counters: Float64Array, spec: AfPacketSpec, tools: DeviceTools) {
    const { window, queues, sendFd, madeOff, accepts } = spec;
    this.id = id;
    this.counters = counters;
    this.#tools = tools;
    this.#addresses = new WindowAddresses(tools.windows);
    this.#receivers = queues.map((queue) => new Receiver(queue, tools.windows[window.id], this.#addresses));
    this.queues = queues.length;
    this.eventFds = queues.map(({ fd }) => fd);
    this.#sendFd = sendFd;
    this.#headersAddress = Number(addressOf(this.#headers));
    this.#outcome = new SendOutcome(counters, tools.ringStage.burst);
    this.#made = new MadeFrames(tools, this.#addresses, tools.windows[window.id], madeOff);
    this.#accepts = accepts;
  }

  receive(queue: number): number {
    const { burst } = this.#tools.ringStage;
    burst.clear();
    const receiver = this.#receivers[queue];
    receiver.receive(this.#tools);
    const { count, len } = burst;
    if (receiver.lost > 0) {
      this.counters[PORT_SLOTS.tx_missed] += receiver.lost;
      receiver.lost = 0;
    }
    if (count === 0) {
      // nobody completes an empty burst, and of slots with nothing in them there may be some
      receiver.complete();
      return 0;
    }
    let bytes = 0;
    for (let i = 0; i < count; i++) bytes += Math.max(len[i], 0);
    this.counters[PORT_SLOTS.tx_packets] += count;
    this.counters[PORT_SLOTS.tx_bytes] += bytes;
    return count;
  }

  complete(queue: number): void {
    this.#receivers[queue].complete();
  }

  transmit(list: Int32Array, from: number, to: number): number {
    const { offloads, needs } = this.#tools.ringStage.burst;
    if (!offloads) return this.#sendAsTheyAre(list, from, to);
    let delivered = 0;
    let run = from;
    for (let k = from; k < to; k++) {
      if ((needs[list[k]] & ~this.#accepts) === 0) continue;
      delivered += this.#sendAsTheyAre(list, run, k) + this.#sendMade(list[k]);
      run = k + 1;
    }
    return delivered + this.#sendAsTheyAre(list, run, to);
  }

  #sendAsTheyAre(list: Int32Array, from: number, to: number): number {
    const { burst } = this.#tools.ringStage;
    const { segments, first } = burst;
    const batch = this.#batch;
    const addresses = this.#addresses;
    batch.clear();
    for (let k = from; k < to; k++) {
      const i = list[k];
      const at = 16 * (k - from);
      writeHeader(burst, i, this.#headers, at);
      batch.begin();
      batch.add(this.#headersAddress + at, KERNEL_HEADER_BYTES);
      for (let s = first[i]; s < first[i + 1]; s++)
        batch.add(addresses.of(segments.window[s], segments.off[s]), segments.len[s]);
    }
    const n = to - from;
    let done = 0;
    let delivered = 0;
    while (done < n) {
      const taken = batch.send(this.#sendFd, done);
      if (taken > 0) {
        this.#outcome.sent(list, from + done, from + done + taken);
        done += taken;
        delivered += taken;
      } else done += this.#outcome.refused(-taken, n - done);
    }
    return delivered;
  }

  /** Sends what packet `i` becomes, as far as the kernel takes it. @returns 1 if that is all of it */
  #sendMade(i: number): number {
    const made = this.#made;
    const frames = made.make(i);
    if (frames === 0) {
      this.#outcome.malformed();
      return 0;
    }
    this.#headers.fill(0, 0, KERNEL_HEADER_BYTES);
    for (let done = 0; done < frames; ) {
      const batch = this.#batch;
      const end = Math.min(frames, done + BURST_SIZE);
      batch.clear();
      for (let frame = done; frame < end; frame++) {
        batch.begin();
        batch.add(this.#headersAddress, KERNEL_HEADER_BYTES);
        batch.add(made.address(frame), made.len(frame));
      }
      const taken = batch.send(this.#sendFd, 0);
      if (taken <= 0) {
        // without one of its parts the packet is of no use
        if (this.#outcome.refused(-taken, 1) > 0) return 0;
        continue;
      }
      let bytes = 0;
      for (let frame = done; frame < done + taken; frame++) bytes += made.len(frame);
      done += taken;
      this.#outcome.sentMade(i, taken, bytes, done === frames);
    }
    return 1;
  }

  prepareSleep(): boolean {
    for (const receiver of this.#receivers) if (receiver.ready) return false;
    return true;
  }

  drain(): void {}

  tick(): void {
    for (const { fd } of this.#receivers) this.counters[PORT_SLOTS.tx_missed] += missedFrames(fd);
  }

  close(): void {
    this.tick();
  }
}
