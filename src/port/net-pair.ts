/**
 * One queue pair of a guest's network card: both queues, their kick and call eventfds, and waiting for calls on the event loop.
 */
import { closeSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { SwitchError } from '../errors.ts';
import { createEventfds, drain, signal } from '../sys/eventfd.ts';
import { ReadWatch } from '../sys/unix-socket.ts';
import type { DriverRing } from '../virtqueue/driver-ring.ts';
import { PackedDriver, packedRingLayout } from '../virtqueue/packed-driver.ts';
import { SplitDriver, splitLayout } from '../virtqueue/split-driver.ts';
import type { GuestRam } from './guest-ram.ts';
import { type ChainLayout, type NetHeader, RxQueue, TxQueue } from './net-queue.ts';

/** How a pair's rings and buffers are made. */
export interface PairOptions {
  /** descriptors of each ring; of a split ring a power of two */
  readonly ringSize: number;
  /** RING_PACKED is negotiated; by default it is not */
  readonly packed?: boolean;
  /** IN_ORDER is negotiated; by default it is not */
  readonly inOrder?: boolean;
  /** EVENT_IDX is negotiated */
  readonly eventIdx: boolean;
  /** bytes of the packet header: 10 or 12 */
  readonly headerLen: number;
  /** bytes of the largest frame to be sent */
  readonly maxFrame: number;
  /** bytes of a receive buffer, header included */
  readonly bufferBytes: number;
  /** MRG_RXBUF is negotiated */
  readonly mergeable: boolean;
  readonly txLayout: ChainLayout;
  readonly rxLayout: ChainLayout;
}

/** A ring with the eventfds it is driven by. */
export interface DrivenRing {
  readonly driver: DriverRing;
  /** guest address of the ring's first byte, that of its descriptors */
  readonly addr: number;
  readonly kickFd: number;
  readonly callFd: number;
}

/** The parts of a ring of this format, relative to its beginning, and its size in bytes. */
export const ringLayout = (packed: boolean, size: number) => (packed ? packedRingLayout(size) : splitLayout(size));

function ringIn(ram: GuestRam, { ringSize, eventIdx, packed = false, inOrder = false }: PairOptions) {
  const layout = ringLayout(packed, ringSize);
  const { addr, off } = ram.alloc(layout.bytes, 4096, 0);
  const place = { descOff: off + layout.descOff, availOff: off + layout.availOff, usedOff: off + layout.usedOff };
  const Driver = packed ? PackedDriver : SplitDriver;
  return { driver: new Driver(ram.views, place, ringSize, eventIdx, inOrder), addr };
}

export class NetPair {
  readonly rx: RxQueue;
  readonly tx: TxQueue;
  /** Receive ring, transmit ring: vrings 2n and 2n + 1. */
  readonly rings: readonly [DrivenRing, DrivenRing];
  /** Kicks and calls so far: written to kick eventfds, and found in call eventfds while waiting. */
  kicks = 0;
  calls = 0;
  readonly #watches: readonly [ReadWatch, ReadWatch];
  readonly #wakers = new Set<() => void>();
  #gone = false;

  /** Places rings and buffers in `ram`, which stays the caller's; owns its eventfds. Throws RangeError if they do not fit, SysError. */
  constructor(ram: GuestRam, options: PairOptions) {
    const { headerLen, maxFrame, bufferBytes, mergeable, txLayout, rxLayout } = options;
    const rx = ringIn(ram, options);
    const tx = ringIn(ram, options);
    this.rx = new RxQueue(rx.driver, ram, headerLen, bufferBytes, mergeable, rxLayout);
    this.tx = new TxQueue(tx.driver, ram, headerLen, maxFrame, txLayout);
    // Last, so that nothing is left open where something does not fit.
    const [rxKick, rxCall, txKick, txCall] = createEventfds(4);
    this.rings = [
      { ...rx, kickFd: rxKick, callFd: rxCall },
      { ...tx, kickFd: txKick, callFd: txCall },
    ];
    this.#watches = [new ReadWatch(rxCall, () => {}), new ReadWatch(txCall, () => {})];
    for (const watch of this.#watches) watch.pause();
    this.reset();
  }

  /** Empties both rings and offers all receive buffers, as a driver does when it is loaded. */
  reset(): void {
    this.tx.reset();
    this.rx.reset();
    this.rx.fill();
    this.rx.ring.publish();
  }

  /** Queues one frame. @returns false if the ring is full; then what is queued has been flushed. */
  send(frame: Uint8Array, header?: Partial<NetHeader>): boolean {
    if (this.tx.add(frame, header)) return true;
    this.flush();
    return false;
  }

  /** Publishes what is queued and kicks the device if it asks for that. */
  flush(): void {
    if (this.tx.ring.publish()) this.kick(1);
  }

  /** The next received frame, copied out; its header is in `rx.header`. Its buffers go back to the device. */
  receive(): Uint8Array | undefined {
    const frame = this.rx.take();
    if (frame !== undefined && this.rx.ring.publish()) this.kick(0);
    return frame;
  }

  /** Kicks ring 0 (receive) or 1 (transmit), asked for or not. */
  kick(ring: 0 | 1): void {
    this.kicks++;
    signal(this.rings[ring].kickFd);
  }

  /** The next received frame, or undefined if none comes within `ms`. Throws SwitchError (DISCONNECTED). */
  async waitFrame(ms: number): Promise<Uint8Array | undefined> {
    await this.#waitCall(0, ms);
    return this.receive();
  }

  /** Waits until the device has taken at least one of the frames sent. @returns how many it has. */
  async waitSent(ms: number): Promise<number> {
    this.flush();
    if (this.tx.ring.nFree < this.tx.ring.size) await this.#waitCall(1, ms);
    return this.tx.reapAll();
  }

  /** Returns when ring `i` has something used, or after `ms`. */
  async #waitCall(i: 0 | 1, ms: number): Promise<void> {
    const { driver, callFd } = this.rings[i];
    const giveUpAt = performance.now() + ms;
    for (;;) {
      if (this.#gone) throw new SwitchError('DISCONNECTED', 'the back end has gone');
      if (driver.ready || driver.broken !== undefined) return;
      const left = giveUpAt - performance.now();
      if (left <= 0) return;
      // Nothing may be used between asking for a call and looking: then there is no need to sleep.
      if (driver.enableCalls()) await this.#sleep(this.#watches[i], left);
      driver.disableCalls();
      this.calls += drain(callFd);
    }
  }

  #sleep(watch: ReadWatch, ms: number): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const timer = setTimeout(resolve, ms);
    this.#wakers.add(resolve);
    watch.resume(() => resolve());
    return promise.finally(() => {
      clearTimeout(timer);
      this.#wakers.delete(resolve);
      if (!this.#gone) watch.pause();
    });
  }

  /** The connection is lost: nobody waits any longer. */
  disconnected(): void {
    this.#gone = true;
    for (const wake of this.#wakers) wake();
  }

  /** Connected again. */
  connected(): void {
    this.#gone = false;
  }

  /** Closes eventfds and watches. */
  async close(): Promise<void> {
    this.disconnected();
    await sleep(0); // those who waited are done with the watches
    for (const watch of this.#watches) watch.close();
    for (const { kickFd, callFd } of this.rings) {
      closeSync(kickFd);
      closeSync(callFd);
    }
  }
}
