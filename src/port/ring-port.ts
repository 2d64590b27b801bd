/**
 * net_ring: what is sent is what is received next, in order, by whichever lcore has the receive queue. The ring is bounded: what
 * does not fit is dropped.
 *
 * Frames lie one behind the other in a window, and stay there until the receiver's burst is complete. What they ask of their
 * receiver travels with them.
 */
import type { WindowHandle, WindowViews } from '../mem/window.ts';
import { PORT_SLOTS } from '../stats/counters.ts';
import { acquire, release } from '../sys/lock.ts';
import { HEADER_WORDS } from '../virtio-net/burst.ts';
import { BurstCopy } from './burst-copy.ts';
import type { DeviceOpening, DevicePort, DeviceSpec, DeviceTools, OpenedDevice } from './device-port.ts';
import { addFrame, countReceived, Sent } from './frame-burst.ts';
import { localMac, PortWindow } from './port-window.ts';
import type { VdevOf } from './vdev.ts';

/** Frames that the ring holds, a power of two, and bytes of all. */
export const RING_FRAMES = 1024;
export const RING_BYTES = 2 ** 22;
const MASK = RING_FRAMES - 1;
/** Frames begin at cache lines. */
const ALIGN = 64;

/** Words that the lcores share. The lock is for those that send. */
const LOCK = 0;
/** frames that have been put in and taken out so far, modulo 2³² */
const PUT = 1;
const TAKEN = 2;
/** where in the memory the next frame goes, and where the oldest is: the same only when it is empty */
const END = 3;
const BEGIN = 4;
const FIRST_ENTRY = 8;
/** Words of each frame: offset, bytes, what it needs, its header. */
const ENTRY_OFF = 0;
const ENTRY_LEN = 1;
const ENTRY_NEEDS = 2;
const ENTRY_HEADER = 3;
const ENTRY_WORDS = ENTRY_HEADER + HEADER_WORDS;

/** What an lcore makes its port from. */
export interface RingSpec extends DeviceSpec {
  readonly window: WindowHandle;
  /** where in the window the frames are */
  readonly off: number;
  /** this lcore has the receive queue */
  readonly receives: boolean;
  readonly shared: SharedArrayBuffer;
}

/** Opens `net_ring…`. */
export function openRing(vdev: VdevOf<'net_ring'>, opening: DeviceOpening): OpenedDevice<RingSpec> {
  const window = new PortWindow(opening, RING_BYTES, 1);
  const shared = new SharedArrayBuffer(4 * (FIRST_ENTRY + ENTRY_WORDS * RING_FRAMES));
  const { handle } = window;
  return {
    name: vdev.name,
    mac: localMac(vdev.name, 'ring'),
    mtu: 1500,
    link: { up: true, speed: 10_000 },
    spec: (lcore) => ({ windows: [handle], window: handle, off: window.off(0), receives: lcore === 0, shared }),
    onLink: () => {},
    close: async () => window.close(),
  };
}

export class RingPort implements DevicePort {
  readonly id: number;
  readonly counters: Float64Array;
  readonly queues: number;
  readonly eventFds: readonly number[] = [];
  readonly canTransmit = true;
  readonly #tools: DeviceTools;
  readonly #views: WindowViews;
  readonly #off: number;
  readonly #words: Int32Array;
  readonly #copy: BurstCopy;
  readonly #sent: Sent;
  /** the headers of the burst, by words */
  readonly #headers: Int32Array;
  /** frames of the burst at hand */
  #held = 0;

  constructor(id: number, counters: Float64Array, { window, off, receives, shared }: RingSpec, tools: DeviceTools) {
    this.id = id;
    this.counters = counters;
    this.queues = receives ? 1 : 0;
    this.#tools = tools;
    this.#views = tools.windows[window.id];
    this.#off = off;
    this.#words = new Int32Array(shared);
    this.#copy = new BurstCopy({ burst: tools.ringStage.burst, windows: tools.windows }, this.#views);
    this.#sent = new Sent(counters, tools.ringStage.burst);
    const { header } = tools.ringStage.burst;
    this.#headers = new Int32Array(header.buffer, header.byteOffset, header.byteLength / 4);
  }

  receive(): number {
    const { burst } = this.#tools.ringStage;
    const words = this.#words;
    burst.clear();
    const taken = words[TAKEN];
    // what was put in before the count was raised is seen
    const n = Math.min((Atomics.load(words, PUT) - taken) | 0, burst.limit);
    for (let i = 0; i < n; i++) {
      const entry = FIRST_ENTRY + ENTRY_WORDS * ((taken + i) & MASK);
      addFrame(burst, this.#views, this.#off + words[entry + ENTRY_OFF], words[entry + ENTRY_LEN]);
      const needs = words[entry + ENTRY_NEEDS];
      if (needs === 0) continue;
      burst.needs[i] = needs;
      burst.offloads = true;
      for (let k = 0; k < HEADER_WORDS; k++) this.#headers[HEADER_WORDS * i + k] = words[entry + ENTRY_HEADER + k];
    }
    this.#held = n;
    return countReceived(this.counters, burst);
  }

  /** The memory of the burst's frames is free. */
  complete(): void {
    const words = this.#words;
    if (this.#held === 0) return;
    const taken = (words[TAKEN] + this.#held) | 0;
    const last = FIRST_ENTRY + ENTRY_WORDS * ((taken - 1) & MASK);
    Atomics.store(words, BEGIN, words[last + ENTRY_OFF] + alignUp(words[last + ENTRY_LEN]));
    Atomics.store(words, TAKEN, taken);
    this.#held = 0;
  }

  transmit(list: Int32Array, from: number, to: number): number {
    const { len } = this.#tools.ringStage.burst;
    const words = this.#words;
    acquire(words, LOCK);
    let put = words[PUT];
    let k = from;
    for (; k < to; k++) {
      const i = list[k];
      if (len[i] < 0) this.counters[PORT_SLOTS.rx_drop_bad_offload]++;
      else if (this.#put(i, put)) {
        put = (put + 1) | 0;
        this.#sent.add(i);
      } else break;
    }
    this.#copy.flush();
    Atomics.store(words, PUT, put);
    release(words, LOCK);
    this.counters[PORT_SLOTS.rx_drop_no_buffer] += to - k;
    return this.#sent.count();
  }

  /** Makes packet `i` frame `number` of the ring, under the lock. @returns false if there is no room */
  #put(i: number, number: number): boolean {
    const { burst } = this.#tools.ringStage;
    const words = this.#words;
    const len = burst.len[i];
    if (((number - Atomics.load(words, TAKEN)) | 0) >= RING_FRAMES) return false;
    const at = placeFor(alignUp(len), words[END], Atomics.load(words, BEGIN));
    if (at < 0) return false;
    words[END] = at + alignUp(len);
    this.#copy.add(i, this.#off + at);
    const entry = FIRST_ENTRY + ENTRY_WORDS * (number & MASK);
    words[entry + ENTRY_OFF] = at;
    words[entry + ENTRY_LEN] = len;
    const needs = burst.needs[i];
    words[entry + ENTRY_NEEDS] = needs;
    if (needs !== 0)
      for (let k = 0; k < HEADER_WORDS; k++) words[entry + ENTRY_HEADER + k] = this.#headers[HEADER_WORDS * i + k];
    return true;
  }

  prepareSleep(): boolean {
    return this.queues === 0 || Atomics.load(this.#words, PUT) === this.#words[TAKEN];
  }

  drain(): void {}

  close(): void {}
}

/** Bytes that a frame takes; an empty one too takes some, so that an end never equals a beginning but in an empty ring. */
const alignUp = (len: number) => (Math.max(len, 1) + ALIGN - 1) & -ALIGN;

/** Where `bytes` bytes in one piece are free, given that [begin, end) is used, round the end of the memory; or −1. */
function placeFor(bytes: number, end: number, begin: number): number {
  if (end < begin) return begin - end > bytes ? end : -1;
  if (RING_BYTES - end >= bytes) return end;
  return begin > bytes ? 0 : -1;
}
