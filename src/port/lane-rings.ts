/**
 * The rings of a lane's AF_XDP socket as its lcore sees them. Addresses are offsets in a UMEM as large as a guest: numbers below 2⁴⁸.
 * Makes no system call. One thread.
 * @see Linux Documentation/networking/af_xdp.rst
 */
import type { WindowViews } from '../mem/window.ts';
import { XDP_RING_NEED_WAKEUP } from '../uapi/xdp.ts';
import type { XdpRingPlace } from './xdp-rings.ts';

const TWO_32 = 2 ** 32;
/** An address's upper word: its own 16 bits, and above them how far behind it the frame begins. */
const HIGH_MASK = 0xffff;
const BEHIND_SHIFT = 16;
const ADDR_WORDS = 2;
const DESC_WORDS = 4;
const DESC_LEN = 2;
const DESC_OPTIONS = 3;

/** What all four have in common. Words are indexes into `i32`. */
class LaneRing {
  protected readonly i32: Int32Array;
  protected readonly producer: number;
  protected readonly consumer: number;
  protected readonly desc: number;
  protected readonly mask: number;
  readonly #flags: number;

  constructor({ i32 }: WindowViews, { producerOff, consumerOff, flagsOff, descOff, size }: XdpRingPlace) {
    this.i32 = i32;
    this.producer = producerOff >> 2;
    this.consumer = consumerOff >> 2;
    this.desc = descOff >> 2;
    this.mask = size - 1;
    this.#flags = flagsOff >> 2;
  }

  /** The kernel must be told of what is new. */
  get needsKick(): boolean {
    return (Atomics.load(this.i32, this.#flags) & XDP_RING_NEED_WAKEUP) !== 0;
  }

  protected put(word: number, address: number): void {
    this.i32[word] = address;
    this.i32[word + 1] = address / TWO_32;
  }

  protected get(word: number): number {
    return (this.i32[word] >>> 0) + TWO_32 * (this.i32[word + 1] & HIGH_MASK);
  }
}

/** A ring that we fill: free buffers to receive into, or frames to be sent. */
class OutRing extends LaneRing {
  /** elements written and not published */
  protected written = 0;

  /** Shows the kernel what has been put. */
  publish(): void {
    if (this.written === 0) return;
    // after the elements that it tells of
    Atomics.store(this.i32, this.producer, (this.i32[this.producer] + this.written) | 0);
    this.written = 0;
  }

  /** Elements that the kernel has not looked at. */
  get waiting(): number {
    return (this.i32[this.producer] - Atomics.load(this.i32, this.consumer)) | 0;
  }
}

/** Free buffers to receive into. It never is full: the lane counts what the kernel has. */
export class LaneFillRing extends OutRing {
  add(address: number): void {
    this.put(this.desc + ADDR_WORDS * ((this.i32[this.producer] + this.written++) & this.mask), address);
  }
}

/** Frames to be sent, each of one element or several. It never is full, either. */
export class LaneTransmitRing extends OutRing {
  /** @param options XDP_PKT_CONTD where the frame goes on in the next element */
  add(address: number, len: number, options: number): void {
    const word = this.desc + DESC_WORDS * ((this.i32[this.producer] + this.written++) & this.mask);
    this.put(word, address);
    this.i32[word + DESC_LEN] = len;
    this.i32[word + DESC_OPTIONS] = options;
  }
}

/** A ring that the kernel fills. */
class InRing extends LaneRing {
  /** Elements that wait. Orders that before reading them. */
  get ready(): number {
    return (Atomics.load(this.i32, this.producer) - this.i32[this.consumer]) | 0;
  }

  /** The first `n` elements have been read. */
  advance(n: number): void {
    Atomics.store(this.i32, this.consumer, (this.i32[this.consumer] + n) | 0);
  }
}

/** Frames that have come. */
export class LaneReceiveRing extends InRing {
  #word(ahead: number): number {
    return this.desc + DESC_WORDS * ((this.i32[this.consumer] + ahead) & this.mask);
  }

  /** The free buffer, as it was given, that frame `ahead` has come in. */
  address(ahead: number): number {
    return this.get(this.#word(ahead));
  }

  /** How far behind that address the frame begins. */
  behind(ahead: number): number {
    return this.i32[this.#word(ahead) + 1] >>> BEHIND_SHIFT;
  }

  len(ahead: number): number {
    return this.i32[this.#word(ahead) + DESC_LEN];
  }
}

/** Elements of the transmit ring that have been sent. */
export class LaneCompletionRing extends InRing {
  /** The address by halves. */
  low(ahead: number): number {
    return this.i32[this.desc + ADDR_WORDS * ((this.i32[this.consumer] + ahead) & this.mask)];
  }

  high(ahead: number): number {
    return this.i32[this.desc + ADDR_WORDS * ((this.i32[this.consumer] + ahead) & this.mask) + 1] & HIGH_MASK;
  }
}
