/**
 * The datapath of a device that answers requests: on the event loop of the main thread, woken by kicks. One device each.
 *
 * A front end that truncates its memory can end this process (SIGBUS), unless it is sealed against that as QEMU's memfd is.
 */
import { AddressMap } from '../mem/address-map.ts';
import { DirtyLog } from '../mem/dirty-log.ts';
import { openWindow, type WindowViews } from '../mem/window.ts';
import { Caller, Epoll } from '../sys/eventfd.ts';
import { ReadWatch } from '../sys/unix-socket.ts';
import { FAULT_NONE } from '../virtqueue/fault.ts';
import { PackedRing } from '../virtqueue/packed-ring.ts';
import { type QueuedRequest, RequestQueue, type VirtioRequest } from '../virtqueue/request-queue.ts';
import { SplitRing } from '../virtqueue/split-ring.ts';
import type { Datapath, DeviceMemory, VringConfig } from './datapath.ts';
import { NO_FD } from './vhost-device.ts';

/**
 * Does what a request asks, now or later. @returns bytes written to its writable memory, from the first on. An error, thrown or as a
 * rejection, is the device's own: nothing is processed any more.
 */
export type RequestHandler = (request: VirtioRequest) => number | Promise<number>;

/** What becomes of the device's vrings. */
export interface RequestEvents {
  /** A vring has been stopped for a fault (virtqueue/fault.ts): told once. */
  onFault(vring: number, fault: number): void;
  /** A vring waits for the translation of an I/O virtual address. */
  onMiss(vring: number, iova: number, write: boolean): void;
  /** The handler has failed: told once. */
  onFailure(error: Error): void;
}

/** Requests begun on a vring before others get their turn. */
const REQUESTS_PER_TURN = 64;
/** How often vrings without a kick eventfd are looked at, ms. */
const POLL_MS = 1;
const TWO_32 = 2 ** 32;

interface StartedVring {
  readonly index: number;
  readonly queue: RequestQueue;
  readonly errFd: number;
  enabled: boolean;
  faultTold: boolean;
}

export class RequestDatapath implements Datapath {
  readonly #handle: RequestHandler;
  readonly #events: RequestEvents;
  readonly #caller = new Caller(new Int32Array(1), 0);
  /** by window id */
  readonly #windows: WindowViews[] = [];
  /** by number, those that are started */
  readonly #vrings = new Map<number, StartedVring>();
  /** the kick eventfds. Edge-triggered: they are never read, so no peer can make us wait. */
  readonly #kicks = new Epoll();
  readonly #watch: ReadWatch;
  #map = new AddressMap([]);
  #log: DirtyLog | undefined;
  /** no requests begin: memory is being exchanged */
  #held = false;
  #failed = false;
  #turn: NodeJS.Immediate | undefined;
  #pollTimer: NodeJS.Timeout | undefined;

  /** Throws SysError when there is no file descriptor left. `removePort` releases what this holds. */
  constructor(handle: RequestHandler, events: RequestEvents) {
    this.#handle = handle;
    this.#events = events;
    try {
      this.#watch = new ReadWatch(this.#kicks.fd, () => {
        this.#kicks.wait(0);
        this.#serveAll();
      });
    } catch (error) {
      this.#kicks.close();
      throw error;
    }
  }

  removePort(): void {
    clearImmediate(this.#turn);
    this.#watch.close();
    this.#kicks.close();
  }

  /** Resolves when the requests that were under way are done with the old memory. */
  async setMemory(_port: number, { windows, chunks, iotlb, log }: DeviceMemory): Promise<void> {
    this.#held = true;
    await Promise.all([...this.#vrings.values()].map(({ queue }) => queue.idle()));
    for (const window of windows) this.#windows[window.id] ??= openWindow(window);
    this.#map = new AddressMap(chunks, iotlb);
    this.#log = log && new DirtyLog(log, this.#windows);
    for (const { queue } of this.#vrings.values()) {
      queue.ring.map = this.#map;
      queue.ring.log = this.#log;
      queue.missing = false;
    }
    this.#held = false;
    this.#serveSoon();
  }

  startVring(_port: number, index: number, { ring: config, features, enabled, errFd }: VringConfig): void {
    const Ring = config.format === 'packed' ? PackedRing : SplitRing;
    const ring = new Ring(config, this.#map, this.#windows, this.#caller);
    ring.log = this.#log;
    const vring = { index, queue: new RequestQueue(ring, index, features), errFd, enabled, faultTold: false };
    this.#vrings.set(index, vring);
    if (ring.start() !== FAULT_NONE) this.#tellFault(vring);
    if (config.kickFd !== NO_FD) this.#kicks.add(config.kickFd);
    this.#choosePolling();
    this.#serveSoon();
  }

  /** Waits for the requests under way in any case: they may be using guest memory. With `drain` false they are done all the same. */
  async stopVring(_port: number, index: number): Promise<number | undefined> {
    const vring = this.#vrings.get(index);
    if (vring === undefined) return undefined;
    const { ring } = vring.queue;
    this.#vrings.delete(index);
    if (ring.kickFd !== NO_FD) this.#kicks.remove(ring.kickFd);
    this.#choosePolling();
    await vring.queue.idle();
    return ring.base;
  }

  /** What a disabled vring is asked waits until it is enabled: requests have no other way to remain without effect. */
  enableVring(_port: number, index: number, enabled: boolean): void {
    const vring = this.#vrings.get(index);
    if (vring === undefined) return;
    vring.enabled = enabled;
    this.#serveSoon();
  }

  setCall(_port: number, index: number, fd: number): void {
    const vring = this.#vrings.get(index);
    vring?.queue.ring.setCall(fd);
  }

  #choosePolling(): void {
    const polled = [...this.#vrings.values()].some(({ queue }) => queue.ring.kickFd === NO_FD);
    if (!polled) clearInterval(this.#pollTimer);
    this.#pollTimer = polled ? (this.#pollTimer ?? setInterval(() => this.#serveAll(), POLL_MS)) : undefined;
  }

  #serveSoon(): void {
    this.#turn ??= setImmediate(() => {
      this.#turn = undefined;
      this.#serveAll();
    });
  }

  #serveAll(): void {
    for (const vring of this.#vrings.values()) this.#serve(vring);
  }

  /** Begins what the driver asks, a bounded number of requests. */
  #serve(vring: StartedVring): void {
    const { queue } = vring;
    if (this.#held || this.#failed || !vring.enabled || queue.blocked) return;
    queue.ring.suppressKicks();
    let left = REQUESTS_PER_TURN;
    for (let request = queue.popOrAsk(); request !== undefined; request = queue.popOrAsk()) {
      this.#begin(vring, request);
      if (this.#failed) return;
      if (--left > 0) continue;
      this.#serveSoon();
      return;
    }
    if (queue.missing) this.#tellMiss(vring);
    if (queue.ring.fault !== FAULT_NONE) this.#tellFault(vring);
  }

  #begin(vring: StartedVring, request: QueuedRequest): void {
    const fail = (error: unknown) => this.#fail(vring, request, error as Error);
    let written: number | Promise<number>;
    try {
      written = this.#handle(request);
      if (typeof written === 'number') this.#complete(vring, request, written);
    } catch (error) {
      fail(error);
      return;
    }
    if (typeof written !== 'number') written.then((n) => this.#complete(vring, request, n)).catch(fail);
  }

  #complete({ queue }: StartedVring, request: QueuedRequest, written: number): void {
    const wasBlocked = queue.blocked;
    if (queue.complete(request, written)) queue.ring.notify();
    if (wasBlocked) this.#serveSoon();
  }

  #fail({ queue }: StartedVring, request: QueuedRequest, error: Error): void {
    queue.abandon(request);
    if (this.#failed) return;
    this.#failed = true;
    this.#events.onFailure(error);
  }

  #tellMiss({ index, queue }: StartedVring): void {
    const { missLo, missHi, missWrite } = queue.ring;
    this.#events.onMiss(index, (missHi >>> 0) * TWO_32 + (missLo >>> 0), missWrite);
  }

  #tellFault(vring: StartedVring): void {
    if (vring.faultTold) return;
    vring.faultTold = true;
    if (vring.errFd !== NO_FD) this.#caller.call(vring.errFd);
    this.#events.onFault(vring.index, vring.queue.ring.fault);
  }
}
