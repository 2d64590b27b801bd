/**
 * What comes to a guest by its lane: the kernel has the guest's receive buffers, and writes frames behind the packet header's place.
 * In which of them a frame comes the kernel decides.
 */
import type { WindowViews } from '../mem/window.ts';
import { LANE_SLOTS } from '../stats/counters.ts';
import { kickReceive, XdpStatistics } from '../sys/xdp-socket.ts';
import { VIRTIO_NET_HDR_MRG_RXBUF } from '../uapi/virtio-net.ts';
import { VRING_DESC_F_WRITE } from '../uapi/virtio-ring.ts';
import { XDP_PACKET_HEADROOM } from '../uapi/xdp.ts';
import { BURST_SIZE, type Burst } from '../virtio-net/burst.ts';
import type { NetVring } from '../virtio-net/net-vring.ts';
import { tallyPacket } from '../virtio-net/tally.ts';
import { CHAIN_FULL } from '../virtqueue/chain.ts';
import { FAULT_CHAIN_LOOP, FAULT_NONE } from '../virtqueue/fault.ts';
import { SegmentList } from '../virtqueue/segments.ts';
import { UsedPosition } from '../virtqueue/used-position.ts';
import type { Vring } from '../virtqueue/vring.ts';
import { LaneFillRing, LaneReceiveRing } from './lane-rings.ts';
import { LANE_USED, type LaneSpec } from './lane-spec.ts';
import { UmemMap } from './lane-umem.ts';

/** num_buffers in the last word of a 12-byte virtio_net_hdr: always 1 (VIRTIO §5.1.6.3). */
const ONE_BUFFER = 1 << 16;

export class LaneReceive {
  readonly #windows: readonly WindowViews[];
  readonly #own: WindowViews;
  readonly #spec: LaneSpec;
  readonly #shared: Int32Array;
  readonly #counters: Float64Array;
  readonly #umem: UmemMap;
  readonly #fill: LaneFillRing;
  readonly #ring: LaneReceiveRing;
  readonly #used = new UsedPosition();
  readonly #chain = new SegmentList();
  readonly #statistics = new XdpStatistics();
  /** the buffers that the kernel has: address, chain, slots, serial number, and the places of header and frame */
  readonly #address: Float64Array;
  readonly #id: Int32Array;
  readonly #slots: Int32Array;
  readonly #serial: Int32Array;
  readonly #headerWindow: Int32Array;
  readonly #headerOff: Int32Array;
  readonly #frameWindow: Int32Array;
  readonly #frameOff: Int32Array;
  /** their numbers in the order in which they were given to the kernel, from #oldest on, modulo their number; then those that are free */
  readonly #order: Int32Array;
  readonly #mask: number;
  #oldest = 0;
  #count = 0;
  /** of the chain at hand: where a frame goes, in a window and in the UMEM */
  #toWindow = 0;
  #toOff = 0;
  #to = 0;
  /** buffers returned one after the other without one that fits */
  #misfits = 0;
  /** kicks have been asked for */
  #asked = false;
  /** what had been counted elsewhere when it was asked last */
  #longBefore = 0;
  #lostBefore = 0;
  /** bytes of the frames of the last delivery */
  bytes = 0;

  /** @param shared LANE_WORDS @param counters LANE_SLOTS */
  constructor(spec: LaneSpec, windows: readonly WindowViews[], shared: Int32Array, counters: Float64Array) {
    this.#windows = windows;
    this.#own = windows[spec.window.id];
    this.#spec = spec;
    this.#shared = shared;
    this.#counters = counters;
    this.#umem = new UmemMap(spec.pieces);
    this.#fill = new LaneFillRing(this.#own, spec.fill);
    this.#ring = new LaneReceiveRing(this.#own, spec.rx);
    const n = spec.rxBuffers;
    this.#mask = n - 1;
    this.#address = new Float64Array(n);
    this.#id = new Int32Array(n);
    this.#slots = new Int32Array(n);
    this.#serial = new Int32Array(n);
    this.#headerWindow = new Int32Array(n);
    this.#headerOff = new Int32Array(n);
    this.#frameWindow = new Int32Array(n);
    this.#frameOff = new Int32Array(n);
    this.#order = Int32Array.from({ length: n }, (_, i) => i);
  }

  begin({ ring }: NetVring): void {
    ring.enter();
    this.#used.begin(ring);
    this.#leave(ring);
  }

  #enter(ring: Vring): void {
    ring.enter();
    this.#used.load(this.#shared, LANE_USED);
  }

  #leave(ring: Vring): void {
    this.#used.save(this.#shared, LANE_USED);
    ring.leave();
  }

  /** Frames that have come. */
  get ready(): number {
    return this.#ring.ready;
  }

  /** Gives the kernel buffers, as many as it may have. The driver gets back at once those that no frame could come in. */
  post(net: NetVring): void {
    const { ring } = net;
    // a driver whose buffers are all too small would keep us busy for ever
    if (this.#count > this.#mask || this.#misfits > ring.num) return;
    this.#enter(ring);
    if (ring.fault === FAULT_NONE) {
      if (this.#asked) ring.suppressKicks();
      this.#asked = false;
      if (ring.refresh() > 0) this.#postUnder(net);
    }
    this.#leave(ring);
    this.#fill.publish();
    if (this.#fill.needsKick) kickReceive(this.#spec.fd);
  }

  #postUnder({ ring, headerLen }: NetVring): void {
    const chain = this.#chain;
    let returned = 0;
    for (let tries = 0; tries < BURST_SIZE && this.#count <= this.#mask; tries++) {
      chain.count = 0;
      const bytes = ring.chainAt(0, VRING_DESC_F_WRITE, chain);
      if (bytes < 0) {
        if (bytes === CHAIN_FULL) ring.fault = FAULT_CHAIN_LOOP;
        break;
      }
      const { chainId, chainSlots } = ring;
      const serial = this.#used.take(ring, chainSlots);
      if (this.#fits(headerLen)) {
        this.#give(chainId, chainSlots, serial);
        this.#misfits = 0;
        continue;
      }
      this.#misfits++;
      returned++;
      this.#used.turn(ring);
      ring.putUsed(0, chainId, 0);
      ring.publish(chainSlots, true);
      this.#used.turnBack(ring, chainSlots);
    }
    if (returned === 0) return;
    this.#counters[LANE_SLOTS.rx_returned] += returned;
    this.#notify(ring);
  }

  #notify(ring: Vring): void {
    this.#used.turn(ring);
    ring.notify();
    this.#used.turnBack(ring, 0);
  }

  /** True if the header lies in one piece, and the longest frame behind it in one too. */
  #fits(headerLen: number): boolean {
    const { window, off, len, count } = this.#chain;
    if (len[0] < headerLen) return false;
    const own = len[0] > headerLen;
    if (!own && count < 2) return false;
    const { maxFrame } = this.#spec;
    const room = own ? len[0] - headerLen : len[1];
    this.#toWindow = own ? window[0] : window[1];
    this.#toOff = own ? off[0] + headerLen : off[1];
    this.#to = this.#umem.find(this.#toWindow, this.#toOff, maxFrame);
    return room >= maxFrame && this.#to >= 0;
  }

  /** The chain at hand becomes the kernel's. The UMEM goes on before and behind guest memory, so that a whole chunk lies in it. */
  #give(id: number, slots: number, serial: number): void {
    const n = this.#order[(this.#oldest + this.#count++) & this.#mask];
    const address = this.#to - XDP_PACKET_HEADROOM;
    this.#address[n] = address;
    this.#id[n] = id;
    this.#slots[n] = slots;
    this.#serial[n] = serial;
    this.#headerWindow[n] = this.#chain.window[0];
    this.#headerOff[n] = this.#chain.off[0];
    this.#frameWindow[n] = this.#toWindow;
    this.#frameOff[n] = this.#toOff;
    this.#fill.add(address);
    this.#counters[LANE_SLOTS.rx_posted]++;
  }

  /** The number of the buffer that was given to the kernel as `address`, which it has no more; or −1. Mostly it is the oldest. */
  #take(address: number): number {
    const order = this.#order;
    const mask = this.#mask;
    for (let i = 0; i < this.#count; i++) {
      const n = order[(this.#oldest + i) & mask];
      if (this.#address[n] !== address) continue;
      for (let k = i; k > 0; k--) order[(this.#oldest + k) & mask] = order[(this.#oldest + k - 1) & mask];
      order[this.#oldest & mask] = n;
      this.#oldest = (this.#oldest + 1) & mask;
      this.#count--;
      return n;
    }
    return -1;
  }

  /** Shows the driver up to 32 frames that have come. @param burst scratch @returns how many */
  deliver(net: NetVring, burst: Burst): number {
    const n = Math.min(this.#ring.ready, BURST_SIZE);
    this.bytes = 0;
    if (n === 0) return 0;
    const { ring } = net;
    this.#enter(ring);
    const frames = ring.fault === FAULT_NONE ? this.#deliverUnder(net, burst, n) : 0;
    this.#leave(ring);
    this.#ring.advance(n);
    return frames;
  }

  #deliverUnder(net: NetVring, burst: Burst, n: number): number {
    const { ring, headerLen } = net;
    const received = this.#ring;
    let slots = 0;
    let frames = 0;
    this.#used.turn(ring);
    for (let i = 0; i < n; i++) {
      const buffer = this.#take(received.address(i));
      if (buffer < 0) continue;
      const len = received.len(i);
      // anywhere else the kernel puts frames only where another program has a say
      const sound = received.behind(i) === XDP_PACKET_HEADROOM && len <= this.#spec.maxFrame;
      if (sound) {
        this.#writeHeader(buffer, headerLen);
        this.#tally(burst, buffer, len);
        this.bytes += len;
        frames++;
      }
      ring.putUsed(slots, this.#id[buffer], sound ? len + headerLen : 0);
      slots += this.#slots[buffer];
    }
    if (slots > 0) {
      ring.publish(slots, true);
      ring.notify();
    }
    this.#used.turnBack(ring, slots);
    net.count(burst.tally);
    this.#counters[LANE_SLOTS.rx_completed] += frames;
    return frames;
  }

  /** All zeros: nothing is left undone. */
  #writeHeader(buffer: number, headerLen: number): void {
    const { dv } = this.#windows[this.#headerWindow[buffer]];
    const off = this.#headerOff[buffer];
    dv.setInt32(off, 0, true);
    dv.setInt32(off + 4, 0, true);
    dv.setInt32(off + headerLen - 4, headerLen === VIRTIO_NET_HDR_MRG_RXBUF.size ? ONE_BUFFER : 0, true);
  }

  #tally(burst: Burst, buffer: number, len: number): void {
    const { dv } = this.#windows[this.#frameWindow[buffer]];
    const off = this.#frameOff[buffer];
    burst.front[0] = dv.getInt32(off, true);
    burst.front[1] = dv.getInt32(off + 4, true);
    tallyPacket(burst, 0, len);
  }

  /**
   * Has the driver kick when it has buffers, while the kernel could do with more. @returns false if there are some already, or frames
   */
  prepareSleep(net: NetVring): boolean {
    if (this.#ring.ready > 0) return false;
    const { ring } = net;
    if (this.#count > this.#mask || this.#misfits > ring.num) return true;
    this.#enter(ring);
    let some = false;
    if (ring.fault === FAULT_NONE) {
      ring.wantKicks();
      this.#asked = true;
      some = ring.refresh() > 0;
    }
    this.#leave(ring);
    return !some;
  }

  /** About once a second: frames that were lost in the kernel. */
  tick(): void {
    const long = this.#own.i32[this.#spec.droppedOff >> 2] >>> 0;
    this.#counters[LANE_SLOTS.rx_drop_too_big] += (long - this.#longBefore) >>> 0;
    this.#longBefore = long;
    this.#statistics.read(this.#spec.fd);
    const lost = this.#statistics.dropped + this.#statistics.ringFull;
    this.#counters[LANE_SLOTS.rx_drop_no_buffer] += lost - this.#lostBefore;
    this.#lostBefore = lost;
  }

  /**
   * The kernel writes no more: takes its buffers back. They are the ring's again where no other behind them has been used; else
   * the driver gets them back with a header and nothing behind it, which drivers drop.
   */
  abandon(net: NetVring): void {
    const { ring } = net;
    this.#enter(ring);
    if (this.#count > 0 && ring.fault === FAULT_NONE) {
      this.#counters[LANE_SLOTS.rx_taken_back] += this.#count;
      if (this.#used.reaches(this.#serial[this.#order[this.#oldest & this.#mask]])) this.#used.untake(ring);
      else this.#returnAll(net);
    }
    this.#count = 0;
    this.#leave(ring);
  }

  #returnAll({ ring, headerLen }: NetVring): void {
    let slots = 0;
    this.#used.turn(ring);
    for (let i = 0; i < this.#count; i++) {
      const n = this.#order[(this.#oldest + i) & this.#mask];
      this.#writeHeader(n, headerLen);
      ring.putUsed(slots, this.#id[n], headerLen);
      slots += this.#slots[n];
    }
    ring.publish(slots, true);
    ring.notify();
    this.#used.turnBack(ring, slots);
  }
}
