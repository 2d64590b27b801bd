/**
 * A guest's network card that offers load at next to no cost: its rings and frames are laid out once, and from then on only
 * the available indexes move. It relies on the device using buffers in the order of the available ring, as all do that copy;
 * `inOrder` checks it.
 *
 * Hot functions here do no allocation and touch Atomics once a burst: the switch is to be the limit, not this.
 */
import type { GuestRam } from '../src/port/guest-ram.ts';
import type { NetPair } from '../src/port/net-pair.ts';
import { signal } from '../src/sys/eventfd.ts';
import { VRING_AVAIL, VRING_DESC, VRING_USED_ELEM, VRING_USED_F_NO_NOTIFY } from '../src/uapi/virtio-ring.ts';
import { asSplit, needEvent, type SplitDriver } from '../src/virtqueue/split-driver.ts';

const TWO_32 = 2 ** 32;
const LINE = 64;
/** Bytes of a buffer before the word that is rewritten in its first line: header, addresses, type, and room for alignment. */
const SEQ_OFF = 28;
/** Polls without a full burst after which a smaller one will do. */
const PATIENCE = 256;

/** One ring as the hot loop sees it: indexes into views, all small integers. */
export class StaticRing {
  readonly u16: Uint16Array;
  readonly i32: Int32Array;
  readonly mask: number;
  readonly eventIdx: boolean;
  readonly availIdxIdx: number;
  readonly usedIdxIdx: number;
  readonly usedFlagsIdx: number;
  readonly availEventIdx: number;
  readonly kickFd: number;
  /** word index of each buffer, in the order of the available ring's entries */
  readonly bufferIdx: Int32Array;
  /** the next available index to be published, and the next used index to be looked at */
  avail: number;
  used: number;
  /** buffers used by the device since the beginning, and kicks written for it */
  total = 0;
  kicks = 0;
  waited = 0;
  readonly #driver: SplitDriver;

  /** Takes over a ring whose entries all hold buffers of one descriptor. The driver must not be used any more. */
  constructor(driver: SplitDriver, ram: GuestRam, kickFd: number) {
    const { views, place, size } = driver;
    this.#driver = driver;
    this.u16 = views.u16;
    this.i32 = views.i32;
    this.mask = size - 1;
    this.eventIdx = driver.eventIdx;
    this.availIdxIdx = (place.availOff + VRING_AVAIL.off.idx) >> 1;
    this.usedIdxIdx = (place.usedOff + VRING_AVAIL.off.idx) >> 1;
    this.usedFlagsIdx = (place.usedOff + VRING_AVAIL.off.flags) >> 1;
    this.availEventIdx = (place.usedOff + VRING_AVAIL.size + VRING_USED_ELEM.size * size) >> 1;
    this.kickFd = kickFd;
    this.avail = driver.availIdx;
    this.used = driver.usedIdx;
    this.bufferIdx = Int32Array.from({ length: size }, (_, entry) => {
      const desc = driver.descriptorOff(this.idAt(entry)) + VRING_DESC.off.addr;
      const addr = views.dv.getUint32(desc, true) + views.dv.getUint32(desc + 4, true) * TWO_32;
      return (ram.offsetOf(addr) as number) >> 2;
    });
  }

  /** The descriptor that entry `idx` of the available ring names. */
  idAt(idx: number): number {
    const { views, place } = this.#driver;
    return views.dv.getUint16(place.availOff + VRING_AVAIL.size + 2 * (idx & this.mask), true);
  }

  /** Of used entry `idx`: the bytes written if it names the buffer offered at the same place in the order, else −1. */
  usedLenAt(idx: number): number {
    const { views, place } = this.#driver;
    const elem = place.usedOff + VRING_AVAIL.size + VRING_USED_ELEM.size * (idx & this.mask);
    if (views.dv.getUint32(elem + VRING_USED_ELEM.off.id, true) !== this.idAt(idx)) return -1;
    return views.dv.getUint32(elem + VRING_USED_ELEM.off.len, true);
  }

  /** Buffers that the device has used since the last look, `burst` or more unless it takes its time: then perhaps fewer. */
  look(burst: number): number {
    const n = (Atomics.load(this.u16, this.usedIdxIdx) - this.used) & 0xffff;
    if (n >= burst) {
      this.waited = 0;
      return n;
    }
    if (++this.waited < PATIENCE) return 0;
    this.waited = 0;
    return n;
  }

  /** Gives the last `n` used buffers back to the device, and kicks it if it asks for that. */
  recycle(n: number): void {
    this.retire(n);
    this.publish(n);
  }

  /** Takes the last `n` used buffers back. */
  retire(n: number): void {
    this.used = (this.used + n) & 0xffff;
    this.total += n;
  }

  /** Offers the next `n` buffers, which are retired, and kicks the device if it asks for that. */
  publish(n: number): void {
    const old = this.avail;
    const now = (old + n) & 0xffff;
    this.avail = now;
    Atomics.store(this.u16, this.availIdxIdx, now);
    const wanted = this.eventIdx
      ? needEvent(this.u16[this.availEventIdx], now, old)
      : (this.u16[this.usedFlagsIdx] & VRING_USED_F_NO_NOTIFY) === 0;
    if (wanted) this.kick();
  }

  kick(): void {
    this.kicks++;
    signal(this.kickFd);
  }

  /** True if the last `n` used entries name the buffers in the order in which they were offered. */
  inOrder(n: number): boolean {
    for (let i = 1; i <= n; i++) if (this.usedLenAt((this.used - i) & 0xffff) < 0) return false;
    return true;
  }
}

/** A card of one queue pair whose rings have been taken over. */
export class StaticPort {
  readonly rx: StaticRing;
  readonly tx: StaticRing;
  /** sum of all words read, so that reading them is not optimised away */
  sink = 0;
  /** touched frames that came with a number not above the one before: reordered or repeated */
  disorder = 0;
  /** words from the number in one buffer to its last line */
  readonly #lines: number;
  #seq = 0;
  #lastSeq = 0;

  /**
   * @param frames one frame for each entry of the transmit ring, of equal size; the ring must be empty.
   * @param headerLen bytes of the packet header
   */
  constructor(pair: NetPair, ram: GuestRam, frames: readonly Uint8Array[], headerLen: number) {
    const [rx, tx] = pair.rings;
    for (const { driver } of pair.rings) driver.disableCalls();
    for (const frame of frames) if (!pair.tx.add(frame)) throw new Error('the transmit ring is not empty');
    this.rx = new StaticRing(asSplit(rx.driver), ram, rx.kickFd);
    this.tx = new StaticRing(asSplit(tx.driver), ram, tx.kickFd);
    // The driver counts all of them as offered; nothing is published yet, so the index stands a ring's length earlier.
    this.tx.avail = (this.tx.avail - frames.length) & 0xffff;
    this.#lines = Math.ceil((headerLen + frames[0].length) / LINE);
  }

  /** Writes a running number and one word of each further cache line into the next `n` buffers to be sent. */
  #touchTx(n: number): void {
    const { i32, bufferIdx, mask, avail } = this.tx;
    const lines = this.#lines;
    let seq = this.#seq;
    for (let k = 0; k < n; k++) {
      const at = bufferIdx[(avail + k) & mask];
      seq = (seq + 1) | 0;
      i32[at] = 0; // the packet header's first word, as a driver clears it
      i32[at + (SEQ_OFF >> 2)] = seq;
      for (let line = 1; line < lines; line++) i32[at + line * (LINE >> 2)] = seq;
    }
    this.#seq = seq;
  }

  /** Reads the number and one word of each further cache line of the next `n` received buffers. */
  #touchRx(n: number): void {
    const { i32, bufferIdx, mask, used } = this.rx;
    const lines = this.#lines;
    let sink = this.sink;
    let last = this.#lastSeq;
    for (let k = 0; k < n; k++) {
      const at = bufferIdx[(used + k) & mask];
      const seq = i32[at + (SEQ_OFF >> 2)];
      if (((seq - last) | 0) <= 0) this.disorder++;
      last = seq;
      for (let line = 1; line < lines; line++) sink = (sink + i32[at + line * (LINE >> 2)]) | 0;
    }
    this.sink = sink;
    this.#lastSeq = last;
  }

  /** Begins to send: publishes all frames. They must be retired. */
  start(touch: boolean): void {
    const n = this.tx.mask + 1;
    if (touch) {
      this.#lastSeq = this.#seq;
      this.#touchTx(n);
    }
    this.tx.publish(n);
  }

  /** One turn without sending again: takes back what the device is done with. @returns true if there was something. */
  drain(): boolean {
    const sent = this.tx.look(1);
    this.tx.retire(sent);
    const received = this.rx.look(1);
    if (received > 0) this.rx.recycle(received);
    return sent + received > 0;
  }

  /** One turn: sends again what the device has taken, and gives back what it has filled. @returns frames received. */
  poll(burst: number, touch: boolean): number {
    const sent = this.tx.look(burst);
    if (sent > 0) {
      if (touch) this.#touchTx(sent);
      this.tx.recycle(sent);
    }
    const received = this.rx.look(burst);
    if (received > 0) {
      if (touch) this.#touchRx(received);
      this.rx.recycle(received);
    }
    return received;
  }

  /** Bytes `from` to `to` of buffer entry `idx` of a ring. */
  bytes(ring: StaticRing, idx: number, from: number, to: number): Uint8Array {
    const at = ring.bufferIdx[idx & ring.mask] * 4;
    return new Uint8Array(ring.i32.buffer, at + from, to - from);
  }
}
