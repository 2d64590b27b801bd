/**
 * A virtqueue of requests, as all devices have but those that move packets: each chain is one request, with memory that the device
 * reads and memory that it writes, and may take its time.
 *
 * Requests may be completed in any order; the driver gets them back in the order in which it made them available. So the used index
 * alone says what has been done, and a successor of this process can go on behind it, and IN_ORDER is kept by the way.
 *
 * Not for the packet path: a request allocates.
 * @see VIRTIO 1.2 §2.6
 */
import { CHAIN_FULL, CHAIN_MISS, READ_THEN_WRITE } from './chain.ts';
import { FAULT_CHAIN_LOOP, FAULT_NONE } from './fault.ts';
import { GuestBuffer } from './guest-buffer.ts';
import { SegmentList } from './segments.ts';
import type { Vring } from './vring.ts';

/** Requests that a queue gives out at a time. More wait in the ring: how much memory they take here is not the guest's to say. */
export const MAX_PENDING = 256;

/** A driver's request. Its memory may be touched until it is completed, and not thereafter: somebody else's may be there then. */
export interface VirtioRequest {
  /** number of the vring it came by */
  readonly vring: number;
  /** the features that the driver has accepted */
  readonly features: bigint;
  /** what the driver says */
  readonly readable: GuestBuffer;
  /** room for the answer */
  readonly writable: GuestBuffer;
}

const PENDING = 0;
const DONE = 1;
/** It will never be completed, nor will those behind it. */
const ABANDONED = 2;

/** A request on its way through the device. */
export interface QueuedRequest extends VirtioRequest {
  /** what its used element names, and the slots it takes */
  readonly id: number;
  readonly slots: number;
  /** where its writable memory lies: window, offset and length, piece by piece */
  readonly places: Int32Array;
  state: typeof PENDING | typeof DONE | typeof ABANDONED;
  written: number;
}

export class RequestQueue {
  readonly ring: Vring;
  readonly #vring: number;
  readonly #features: bigint;
  readonly #segments = new SegmentList();
  /** what `Vring.begin` is told of the request at hand */
  readonly #id = new Int32Array(1);
  readonly #size = new Int32Array(1);
  /** given out and not given back, in the ring's order; the slots they take */
  #pending: QueuedRequest[] = [];
  #slots = 0;
  /** of them, those not completed */
  #busy = 0;
  #abandoned = false;
  #onIdle: (() => void)[] = [];
  /** the next request needs a translation, which `ring.missLo` and `missHi` say; set to false once it may be there */
  missing = false;

  /** `vring` and `features` are for the requests to tell. Nobody else uses the ring, which has been started. */
  constructor(ring: Vring, vring: number, features: bigint) {
    this.ring = ring;
    this.#vring = vring;
    this.#features = features;
  }

  /** True if looking is no use for now: the ring is at fault or waits for a translation, or enough requests are under way. */
  get blocked(): boolean {
    return this.ring.fault !== FAULT_NONE || this.missing || this.#abandoned || this.#pending.length >= MAX_PENDING;
  }

  /** The next request, or undefined: there is none, or the queue is `blocked`. A malformed chain sets `ring.fault`. */
  pop(): QueuedRequest | undefined {
    if (this.blocked) return undefined;
    const { ring } = this;
    ring.refresh();
    if (ring.fault !== FAULT_NONE) return undefined;
    const list = this.#segments;
    list.count = 0;
    list.writableFrom = -1;
    const bytes = ring.chainAt(this.#slots, READ_THEN_WRITE, list);
    if (bytes >= 0) return this.#begin() ? this.#take(list) : undefined;
    if (bytes === CHAIN_FULL) ring.fault = FAULT_CHAIN_LOOP;
    this.missing = bytes === CHAIN_MISS;
    return undefined;
  }

  /** The request is inflight, before anything of it is touched. @returns false, with the ring at fault, if its records have no room */
  #begin(): boolean {
    const { ring } = this;
    this.#id[0] = ring.chainId;
    this.#size[0] = ring.chainSlots;
    return ring.begin(this.#slots, this.#id, this.#size, 1);
  }

  #take(list: SegmentList): QueuedRequest {
    const from = list.writableFrom < 0 ? list.count : list.writableFrom;
    const request: QueuedRequest = {
      vring: this.#vring,
      features: this.#features,
      readable: this.#buffer(list, 0, from),
      writable: this.#buffer(list, from, list.count),
      id: this.ring.chainId,
      slots: this.ring.chainSlots,
      places: new Int32Array(3 * (list.count - from)),
      state: PENDING,
      written: 0,
    };
    for (let s = from; s < list.count; s++)
      request.places.set([list.window[s], list.off[s], list.len[s]], 3 * (s - from));
    this.#pending.push(request);
    this.#slots += request.slots;
    this.#busy++;
    return request;
  }

  #buffer({ window, off, len }: SegmentList, from: number, to: number): GuestBuffer {
    const pieces: Uint8Array[] = [];
    for (let s = from; s < to; s++) pieces.push(this.ring.windows[window[s]].u8.subarray(off[s], off[s] + len[s]));
    return new GuestBuffer(pieces);
  }

  /** As `pop`; where there is none the driver is asked to kick for the next. */
  popOrAsk(): QueuedRequest | undefined {
    const request = this.pop();
    if (request !== undefined || this.blocked) return request;
    this.ring.wantKicks(this.#slots);
    // what came before the wish was seen would wait for ever
    return this.pop();
  }

  /**
   * Completes a request: the device has written the first `written` bytes of its writable memory at least, and touches it no more.
   * @returns true if the driver has been given something back, and is to be notified
   * Throws RangeError if it has no room for as many, or is complete.
   */
  complete(request: QueuedRequest, written: number): boolean {
    if (request.state !== PENDING) throw new RangeError('the request has been completed before');
    const { length } = request.writable;
    if (!Number.isInteger(written) || written < 0 || written > length)
      throw new RangeError(`${written} bytes written to a request with room for ${length}`);
    this.#mark(request);
    request.written = written;
    this.#settle(request, DONE);
    return this.#publish();
  }

  /** The device has failed and touches the request no more. The driver gets neither it nor any behind it back. */
  abandon(request: QueuedRequest): void {
    this.#abandoned = true;
    this.#settle(request, ABANDONED);
  }

  /** All of its memory: one that failed halfway has written more than it says. */
  #mark({ places }: QueuedRequest): void {
    const { log } = this.ring;
    if (log === undefined) return;
    for (let i = 0; i < places.length; i += 3) log.mark(places[i], places[i + 1], places[i + 2]);
  }

  #settle(request: QueuedRequest, state: typeof DONE | typeof ABANDONED): void {
    request.state = state;
    if (--this.#busy > 0) return;
    for (const resolve of this.#onIdle.splice(0)) resolve();
  }

  /** Gives back those that are done, up to the first that is not. */
  #publish(): boolean {
    const done = this.#pending.findIndex(({ state }) => state !== DONE);
    const ready = this.#pending.splice(0, done < 0 ? this.#pending.length : done);
    if (ready.length === 0) return false;
    let slots = 0;
    for (const { id, slots: taken, written } of ready) {
      this.ring.putUsed(slots, id, written);
      slots += taken;
    }
    this.ring.publish(slots, ready[0].written > 0, ready.length);
    this.#slots -= slots;
    return true;
  }

  /** Resolves when no request is under way: nothing touches guest memory for one. */
  async idle(): Promise<void> {
    if (this.#busy > 0) await new Promise<void>((resolve) => this.#onIdle.push(resolve));
  }
}
