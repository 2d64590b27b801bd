/**
 * A guest's network card that offers load at next to no cost: its rings and frames are laid out once, and from then on only what
 * the ring format has to move does.
 *
 * Hot functions here do no allocation and touch Atomics once a burst: the switch is to be the limit, not this.
 */
import type { GuestRam } from '../src/port/guest-ram.ts';
import type { DrivenRing, NetPair } from '../src/port/net-pair.ts';
import { PackedDriver } from '../src/virtqueue/packed-driver.ts';
import { asSplit } from '../src/virtqueue/split-driver.ts';
import { StaticPackedRing } from './static-packed.ts';
import { type StaticRing, StaticSplitRing } from './static-ring.ts';

const LINE = 64;
/** Bytes of a buffer before the word that is rewritten in its first line: header, addresses, type, and room for alignment. */
const SEQ_OFF = 28;

/** Takes a ring over, with the last `unpublished` of its buffers not shown to the device. */
function takeOver({ driver, kickFd }: DrivenRing, ram: GuestRam, unpublished: number): StaticRing {
  if (driver instanceof PackedDriver) return new StaticPackedRing(driver, ram, kickFd, unpublished);
  return new StaticSplitRing(asSplit(driver), ram, kickFd, unpublished);
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
    this.rx = takeOver(rx, ram, 0);
    this.tx = takeOver(tx, ram, frames.length);
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
