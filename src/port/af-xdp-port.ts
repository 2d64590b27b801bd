/**
 * net_af_xdp on the thread that uses it: frames of a network interface by way of AF_XDP sockets. What comes stays in the UMEM until it
 * has been forwarded; what goes is copied there. Checksums and segmentation that packets need are done in software before.
 */
import { CopyList } from '../mem/copy-list.ts';
import type { WindowHandle, WindowViews } from '../mem/window.ts';
import { PORT_SLOTS } from '../stats/counters.ts';
import { kickReceive, kickTransmit, XdpStatistics } from '../sys/xdp-socket.ts';
import { ETHHDR } from '../uapi/ip.ts';
import { BURST_SEGMENTS, BURST_SIZE, type Burst, FRONT_BYTES, FRONT_WORDS } from '../virtio-net/burst.ts';
import { MIN_BOUNCE_BYTES, OFFLOAD_FULL, OffloadStage } from '../virtio-net/offload-stage.ts';
import type { DevicePort, DeviceSpec, DeviceTools } from './device-port.ts';
import { XdpGroup, type XdpGroupPlace, XdpReceiveRing, type XdpRingPlace, XdpTransmitRing } from './xdp-rings.ts';

/** Memory for what the offload stage makes, of each thread, bytes. */
export const XDP_BOUNCE_BYTES = 2 ** Math.ceil(Math.log2(MIN_BOUNCE_BYTES + 4096));
/** errno of a kick where there is nothing to send to: the interface is down, or has gone. Any other has the frames wait, no more. */
const ENXIO = 6;
const ENODEV = 19;
const ENETDOWN = 100;

/** A socket in the window, of group `group`. */
interface XdpSocketPlace {
  readonly fd: number;
  readonly group: number;
  readonly ring: XdpRingPlace;
}

/** What a thread makes its port from. Survives postMessage; the descriptors stay the device's. */
export interface AfXdpSpec extends DeviceSpec {
  readonly window: WindowHandle;
  readonly groups: readonly XdpGroupPlace[];
  /** the sockets that this thread receives by: its queues */
  readonly receive: readonly XdpSocketPlace[];
  /** the one that it transmits by; `sender` is its number in its group */
  readonly transmit: XdpSocketPlace & { readonly sender: number };
  /** bytes of the longest frame that is sent, and of what a chunk holds of it */
  readonly maxFrame: number;
  readonly chunkFrame: number;
  /** where this thread has XDP_BOUNCE_BYTES of its own in the window */
  readonly bounceOff: number;
}

interface Receiver {
  readonly fd: number;
  readonly group: XdpGroup;
  readonly ring: XdpReceiveRing;
  /** what the kernel had dropped when it was asked last */
  missed: number;
}

/** The element behind the last one of the frame that begins with element `begin`, or −1 if that is not among the first `ready`. */
function endOfFrame(ring: XdpReceiveRing, begin: number, ready: number): number {
  for (let i = begin; i < ready; i++) if (!ring.goesOn(i)) return i + 1;
  return -1;
}

export class AfXdpPort implements DevicePort {
  readonly id: number;
  readonly counters: Float64Array;
  readonly queues: number;
  readonly eventFds: readonly number[];
  readonly #burst: Burst;
  readonly #windows: readonly WindowViews[];
  readonly #window: WindowViews;
  readonly #receivers: readonly Receiver[];
  readonly #maxFrame: number;
  readonly #chunkFrame: number;
  readonly #offload: OffloadStage;
  readonly #copies: CopyList;
  readonly #statistics = new XdpStatistics();
  readonly #tx: XdpTransmitRing;
  readonly #txFd: number;
  readonly #txGroup: XdpGroup;
  readonly #sender: number;
  /** chunks of the burst at hand, which has been received */
  readonly #received = new Int32Array(BURST_SEGMENTS);
  #nReceived = 0;
  /** free chunks at hand during a call of `transmit`: those from #used to #had − 1 */
  readonly #chunks: Int32Array;
  #used = 0;
  #had = 0;
  /** of the frame at hand: where its next bytes go, how many fit there, and which chunk is next */
  #to = 0;
  #left = 0;
  #next = 0;
  /** the kernel refuses to send: the interface is down, or has gone */
  #down = false;

  /** @param id the port's number @param counters a block of PORT_SLOTS */
  constructor(id: number, counters: Float64Array, spec: AfXdpSpec, tools: DeviceTools) {
    this.id = id;
    this.counters = counters;
    this.#burst = tools.ringStage.burst;
    this.#windows = tools.windows;
    this.#window = tools.windows[spec.window.id];
    const groups = spec.groups.map((place) => new XdpGroup(this.#window, place));
    this.#receivers = spec.receive.map(({ fd, group, ring }) => ({
      fd,
      group: groups[group],
      ring: new XdpReceiveRing(this.#window, ring),
      missed: 0,
    }));
    this.queues = spec.receive.length;
    this.eventFds = spec.receive.map(({ fd }) => fd);
    this.#maxFrame = spec.maxFrame;
    this.#chunkFrame = spec.chunkFrame;
    this.#chunks = new Int32Array(BURST_SIZE + Math.ceil(spec.maxFrame / spec.chunkFrame));
    this.#copies = new CopyList(tools.windows);
    this.#offload = new OffloadStage(this.#window, spec.bounceOff, XDP_BOUNCE_BYTES);
    this.#tx = new XdpTransmitRing(this.#window, spec.transmit.ring);
    this.#txFd = spec.transmit.fd;
    this.#txGroup = groups[spec.transmit.group];
    this.#sender = spec.transmit.sender;
  }

  get canTransmit(): boolean {
    return !this.#down;
  }

  receive(queue = 0): number {
    const burst = this.#burst;
    burst.clear();
    const { ring, group } = this.#receivers[queue];
    const ready = Math.min(ring.ready, BURST_SEGMENTS);
    if (ready === 0) return 0;
    const { id: window } = this.#window;
    const { umemOff, chunk } = group;
    const { segments, first, len } = burst;
    let bytes = 0;
    let n = 0;
    let pieces = 0;
    while (n < BURST_SIZE) {
      const end = endOfFrame(ring, pieces, ready);
      if (end < 0) break;
      first[n] = pieces;
      let frame = 0;
      for (; pieces < end; pieces++) {
        const address = ring.address(pieces);
        const piece = ring.len(pieces);
        this.#received[pieces] = address & -chunk;
        segments.push(window, umemOff + address, piece);
        frame += piece;
      }
      len[n] = frame;
      this.#readFront(burst, n, segments.off[first[n]], segments.len[first[n]]);
      bytes += frame;
      n++;
    }
    first[n] = pieces;
    burst.count = n;
    this.#nReceived = pieces;
    ring.advance(pieces);
    this.counters[PORT_SLOTS.tx_packets] += n;
    this.counters[PORT_SLOTS.tx_bytes] += bytes;
    return n;
  }

  #readFront({ front, frontBytes }: Burst, i: number, off: number, len: number): void {
    const { dv, u8 } = this.#window;
    if (len >= FRONT_BYTES) {
      for (let word = 0; word < FRONT_WORDS; word++) front[FRONT_WORDS * i + word] = dv.getInt32(off + 4 * word, true);
      return;
    }
    for (let k = 0; k < FRONT_BYTES; k++) frontBytes[FRONT_BYTES * i + k] = k < len ? u8[off + k] : 0;
  }

  complete(queue = 0): void {
    const { group, fd } = this.#receivers[queue];
    group.refill(this.#received, this.#nReceived);
    this.#nReceived = 0;
    if (group.fillNeedsKick) kickReceive(fd);
  }

  transmit(list: Int32Array, from: number, to: number): number {
    const burst = this.#burst;
    const { counters } = this;
    const { len, needs, segments, first, delivered } = burst;
    if (this.#down) {
      this.#kick();
      if (this.#down) {
        counters[PORT_SLOTS.rx_drop_not_ready] += to - from;
        return 0;
      }
    }
    this.#used = 0;
    this.#had = this.#txGroup.take(this.#sender, this.#chunks, to - from);
    let taken = 0;
    for (let k = from; k < to; k++) {
      const packet = list[k];
      const sent =
        needs[packet] === 0
          ? this.#put(segments.window, segments.off, segments.len, first[packet], first[packet + 1], len[packet])
          : this.#putMade(burst, packet);
      if (!sent) continue;
      delivered[packet]++;
      taken++;
    }
    this.#copies.flush();
    this.#offload.reset();
    this.#txGroup.untake(this.#sender, this.#chunks, this.#used, this.#had);
    this.#tx.publish();
    this.#kick();
    return taken;
  }

  /** Sends what the offload stage makes of a packet. @returns false if some of its frames, and all behind that one, are not sent */
  #putMade(burst: Burst, packet: number): boolean {
    const offload = this.#offload;
    let n = offload.convertPacket(this.#windows, burst, packet);
    if (n === OFFLOAD_FULL) {
      this.#copies.flush();
      offload.reset();
      n = offload.convertPacket(this.#windows, burst, packet);
    }
    if (n < 0) {
      this.counters[PORT_SLOTS.rx_drop_bad_offload]++;
      return false;
    }
    for (let frame = offload.count - n; frame < offload.count; frame++) {
      const len = offload.len[frame];
      if (!this.#place(len)) return false;
      this.#copy(offload.window, offload.off[frame], len);
    }
    return true;
  }

  /** Sends a frame that lies in pieces `begin` to `end` − 1. @returns false if it is dropped */
  #put(window: Int32Array, off: Int32Array, pieceLen: Int32Array, begin: number, end: number, len: number): boolean {
    if (!this.#place(len)) return false;
    for (let s = begin; s < end; s++) this.#copy(window[s], off[s], pieceLen[s]);
    return true;
  }

  /** Finds chunks for a frame, which is copied there next, and lists them in the ring. @returns false if it is dropped */
  #place(len: number): boolean {
    if (len > this.#maxFrame || len < ETHHDR.size) {
      this.counters[PORT_SLOTS.rx_drop_too_big]++;
      return false;
    }
    const room = this.#chunkFrame;
    const n = len <= room ? 1 : Math.ceil(len / room);
    if (this.#had - this.#used < n && !this.#takeMore(n)) {
      this.counters[PORT_SLOTS.rx_drop_no_buffer]++;
      return false;
    }
    const first = this.#used;
    this.#used += n;
    this.#next = first + 1;
    for (let k = first; k < this.#used - 1; k++) this.#tx.put(this.#chunks[k], room, true);
    this.#tx.put(this.#chunks[this.#used - 1], len - (n - 1) * room);
    this.counters[PORT_SLOTS.rx_packets]++;
    this.counters[PORT_SLOTS.rx_bytes] += len;
    this.#to = this.#txGroup.umemOff + this.#chunks[first];
    this.#left = room;
    return true;
  }

  /** Takes free chunks until there are `n`. @returns false if there are fewer */
  #takeMore(n: number): boolean {
    const left = this.#had - this.#used;
    this.#chunks.copyWithin(0, this.#used, this.#had);
    this.#used = 0;
    this.#had = left + this.#txGroup.take(this.#sender, this.#chunks, n - left, left);
    return this.#had >= n;
  }

  /** Copies the next bytes of the frame that has been placed. */
  #copy(window: number, off: number, len: number): void {
    const { id } = this.#window;
    let from = off;
    let rest = len;
    while (rest > this.#left) {
      this.#copies.add(window, from, id, this.#to, this.#left);
      from += this.#left;
      rest -= this.#left;
      this.#to = this.#txGroup.umemOff + this.#chunks[this.#next++];
      this.#left = this.#chunkFrame;
    }
    this.#copies.add(window, from, id, this.#to, rest);
    this.#to += rest;
    this.#left -= rest;
  }

  /** Has the kernel send what waits, as long as it does. */
  #kick(): void {
    const tx = this.#tx;
    let waiting = tx.waiting;
    while (waiting > 0 && tx.needsKick) {
      const error = kickTransmit(this.#txFd);
      this.#down = error === ENETDOWN || error === ENXIO || error === ENODEV;
      const left = tx.waiting;
      if (left >= waiting || this.#down) return;
      waiting = left;
    }
  }

  drain(): void {
    this.#kick();
  }

  prepareSleep(): boolean {
    this.#kick();
    for (let queue = 0; queue < this.queues; queue++) {
      const { ring, group, fd } = this.#receivers[queue];
      if (ring.ready > 0) return false;
      if (group.fillNeedsKick) kickReceive(fd);
    }
    return this.#down || this.#tx.waiting === 0;
  }

  tick(): void {
    const statistics = this.#statistics;
    for (let queue = 0; queue < this.queues; queue++) {
      const receiver = this.#receivers[queue];
      statistics.read(receiver.fd);
      const missed = statistics.dropped + statistics.ringFull;
      this.counters[PORT_SLOTS.tx_missed] += missed - receiver.missed;
      receiver.missed = missed;
    }
  }

  /** The device closes the sockets. */
  close(): void {
    this.#kick();
    this.tick();
  }
}
