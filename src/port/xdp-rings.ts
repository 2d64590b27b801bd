/**
 * The rings and frames of AF_XDP sockets as one thread sees them in a window. Makes no system call.
 *
 * A group is the sockets of one queue of an interface. They share a UMEM, whose chunks are for receiving first, and behind those each
 * transmitting socket's; a ring of free chunks to receive into (FILL), and one of chunks that have been sent (COMPLETION).
 */
import type { WindowViews } from '../mem/window.ts';
import { acquire, release } from '../sys/lock.ts';
import { XDP_PKT_CONTD, XDP_RING_NEED_WAKEUP } from '../uapi/xdp.ts';

/** Where a ring lies in its window: bytes from the window's beginning on. Survives postMessage. */
export interface XdpRingPlace {
  readonly producerOff: number;
  readonly consumerOff: number;
  readonly flagsOff: number;
  readonly descOff: number;
  /** elements, a power of two */
  readonly size: number;
}

/** A group's share of a window. Survives postMessage. */
export interface XdpGroupPlace {
  /** where its UMEM begins */
  readonly umemOff: number;
  /** bytes of a chunk, a power of two */
  readonly chunk: number;
  /** chunks for receiving: the first ones */
  readonly rxChunks: number;
  /** chunks of each socket that transmits: behind those */
  readonly txChunks: number;
  readonly fill: XdpRingPlace;
  readonly completion: XdpRingPlace;
  /** its lock and the free chunks of its transmitting sockets: see `groupState` */
  readonly state: SharedArrayBuffer;
  /** several threads use it */
  readonly shared: boolean;
}

/** A ring by the words of its window: indexes into `i32`. */
class XdpRing {
  readonly producer: number;
  readonly consumer: number;
  readonly flags: number;
  readonly desc: number;
  readonly mask: number;

  constructor({ producerOff, consumerOff, flagsOff, descOff, size }: XdpRingPlace) {
    this.producer = producerOff >> 2;
    this.consumer = consumerOff >> 2;
    this.flags = flagsOff >> 2;
    this.desc = descOff >> 2;
    this.mask = size - 1;
  }
}

/** Words of an element of RX and TX: address, length, options; and of the other two: an address. Addresses are below 2³¹. */
const DESC_WORDS = 4;
const DESC_LEN = 2;
const DESC_OPTIONS = 3;
const ADDR_WORDS = 2;

const LOCK = 0;
const FIRST_STACK = 1;

/** Shared state of a group with `senders` transmitting sockets: all their chunks are free. */
export function groupState(
  senders: number,
  { rxChunks, txChunks, chunk }: Pick<XdpGroupPlace, 'rxChunks' | 'txChunks' | 'chunk'>,
) {
  const words = new Int32Array(new SharedArrayBuffer(4 * (FIRST_STACK + senders * (1 + txChunks))));
  for (let sender = 0; sender < senders; sender++) {
    const stack = FIRST_STACK + sender * (1 + txChunks);
    words[stack] = txChunks;
    for (let i = 0; i < txChunks; i++) words[stack + 1 + i] = (rxChunks + sender * txChunks + i) * chunk;
  }
  return words.buffer as SharedArrayBuffer;
}

/** What the sockets of a group share. */
export class XdpGroup {
  readonly i32: Int32Array;
  readonly umemOff: number;
  readonly chunk: number;
  readonly #fill: XdpRing;
  readonly #completion: XdpRing;
  readonly #state: Int32Array;
  readonly #shared: boolean;
  readonly #rxEnd: number;
  readonly #txChunks: number;

  constructor(views: WindowViews, place: XdpGroupPlace) {
    this.i32 = views.i32;
    this.umemOff = place.umemOff;
    this.chunk = place.chunk;
    this.#fill = new XdpRing(place.fill);
    this.#completion = new XdpRing(place.completion);
    this.#state = new Int32Array(place.state);
    this.#shared = place.shared;
    this.#rxEnd = place.rxChunks * place.chunk;
    this.#txChunks = place.txChunks;
  }

  /** The kernel must be told of what is in the fill ring. */
  get fillNeedsKick(): boolean {
    return (Atomics.load(this.i32, this.#fill.flags) & XDP_RING_NEED_WAKEUP) !== 0;
  }

  /** Gives the first `n` chunks of `addresses` to the kernel to receive into. There is room: no more were taken than it had. */
  refill(addresses: Int32Array, n: number): void {
    const { i32 } = this;
    const { producer, desc, mask } = this.#fill;
    if (this.#shared) acquire(this.#state, LOCK);
    const at = i32[producer];
    for (let i = 0; i < n; i++) {
      const word = desc + ADDR_WORDS * ((at + i) & mask);
      i32[word] = addresses[i];
      i32[word + 1] = 0;
    }
    // after the elements that it tells of
    Atomics.store(i32, producer, (at + n) | 0);
    if (this.#shared) release(this.#state, LOCK);
  }

  /**
   * Takes up to `n` free chunks of a transmitting socket, after what the kernel has sent has become free again.
   * @param into the chunks' addresses in the UMEM, from element `at` on @returns how many there were
   */
  take(sender: number, into: Int32Array, n: number, at = 0): number {
    if (this.#shared) acquire(this.#state, LOCK);
    this.#reap();
    const state = this.#state;
    const stack = FIRST_STACK + sender * (1 + this.#txChunks);
    const free = state[stack];
    const taken = Math.min(n, free);
    for (let i = 0; i < taken; i++) into[at + i] = state[stack + free - i];
    state[stack] = free - taken;
    if (this.#shared) release(this.#state, LOCK);
    return taken;
  }

  /** Gives chunks back that have been taken and not used: `from[first]` … `from[end − 1]`. */
  untake(sender: number, from: Int32Array, first: number, end: number): void {
    if (first === end) return;
    if (this.#shared) acquire(this.#state, LOCK);
    const state = this.#state;
    const stack = FIRST_STACK + sender * (1 + this.#txChunks);
    let free = state[stack];
    for (let i = end - 1; i >= first; i--) state[stack + ++free] = from[i];
    state[stack] = free;
    if (this.#shared) release(this.#state, LOCK);
  }

  /** What has been sent, of whichever socket, is free again. */
  #reap(): void {
    const { i32 } = this;
    const { producer, consumer, desc, mask } = this.#completion;
    const at = i32[consumer];
    // before the elements that it tells of
    const n = (Atomics.load(i32, producer) - at) | 0;
    if (n === 0) return;
    const state = this.#state;
    const bytesEach = this.#txChunks * this.chunk;
    for (let i = 0; i < n; i++) {
      const address = i32[desc + ADDR_WORDS * ((at + i) & mask)];
      const stack = FIRST_STACK + Math.floor((address - this.#rxEnd) / bytesEach) * (1 + this.#txChunks);
      state[stack + ++state[stack]] = address;
    }
    // after they have been read
    Atomics.store(i32, consumer, (at + n) | 0);
  }
}

/** A socket's frames that have come, of which each is one element, or several. */
export class XdpReceiveRing {
  readonly #i32: Int32Array;
  readonly #ring: XdpRing;

  constructor(views: WindowViews, place: XdpRingPlace) {
    this.#i32 = views.i32;
    this.#ring = new XdpRing(place);
  }

  /** Elements that wait. */
  get ready(): number {
    return (Atomics.load(this.#i32, this.#ring.producer) - this.#i32[this.#ring.consumer]) | 0;
  }

  /** Where the piece of element `ahead` begins in the UMEM. */
  address(ahead: number): number {
    const { consumer, desc, mask } = this.#ring;
    return this.#i32[desc + DESC_WORDS * ((this.#i32[consumer] + ahead) & mask)];
  }

  /** Its bytes. */
  len(ahead: number): number {
    const { consumer, desc, mask } = this.#ring;
    return this.#i32[desc + DESC_WORDS * ((this.#i32[consumer] + ahead) & mask) + DESC_LEN];
  }

  /** True if the frame goes on in the next element. */
  goesOn(ahead: number): boolean {
    const { consumer, desc, mask } = this.#ring;
    const options = this.#i32[desc + DESC_WORDS * ((this.#i32[consumer] + ahead) & mask) + DESC_OPTIONS];
    return (options & XDP_PKT_CONTD) !== 0;
  }

  /** The first `n` elements have been read: the kernel may use them again. */
  advance(n: number): void {
    const { consumer } = this.#ring;
    Atomics.store(this.#i32, consumer, (this.#i32[consumer] + n) | 0);
  }
}

/** A socket's frames to be sent. It never is full: it has an element for each chunk. */
export class XdpTransmitRing {
  readonly #i32: Int32Array;
  readonly #ring: XdpRing;
  /** elements written and not published */
  #written = 0;

  constructor(views: WindowViews, place: XdpRingPlace) {
    this.#i32 = views.i32;
    this.#ring = new XdpRing(place);
  }

  /** Lists a frame, or a piece of one that goes on in the next: `len` bytes at `address` of the UMEM. */
  put(address: number, len: number, goesOn = false): void {
    const { producer, desc, mask } = this.#ring;
    const i32 = this.#i32;
    const word = desc + DESC_WORDS * ((i32[producer] + this.#written++) & mask);
    i32[word] = address;
    i32[word + 1] = 0;
    i32[word + DESC_LEN] = len;
    i32[word + DESC_OPTIONS] = goesOn ? XDP_PKT_CONTD : 0;
  }

  /** Shows the kernel what has been put. */
  publish(): void {
    const { producer } = this.#ring;
    Atomics.store(this.#i32, producer, (this.#i32[producer] + this.#written) | 0);
    this.#written = 0;
  }

  /** Elements that the kernel has not looked at. */
  get waiting(): number {
    return (this.#i32[this.#ring.producer] - Atomics.load(this.#i32, this.#ring.consumer)) | 0;
  }

  /** The kernel must be told of them. */
  get needsKick(): boolean {
    return (Atomics.load(this.#i32, this.#ring.flags) & XDP_RING_NEED_WAKEUP) !== 0;
  }
}
