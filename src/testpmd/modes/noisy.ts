/**
 * noisy: behaves like a busy virtual network function: frames wait in a queue of their own before they are sent on, and for each some
 * memory is read and written. Without such settings it is io.
 */
import { CopyStage } from '../../mem/copy-stage.ts';
import { BURST_SIZE, MAX_FRAME_BYTES } from '../../virtio-net/burst.ts';
import type { NoisyConfig } from '../engine.ts';
import { STREAM_SLOTS, type Stream } from '../stream.ts';
import type { Workshop } from '../workshop.ts';
import type { Mode, ModeSettings } from './mode.ts';

const LINE = 64;
const SLOT_BYTES = (Math.ceil((MAX_FRAME_BYTES + 4) / LINE) | 1) * LINE;

export class NoisyMode implements Mode {
  readonly #stream: Stream;
  readonly #workshop: Workshop;
  readonly #config: NoisyConfig;
  readonly #copyStage = new CopyStage();
  readonly #memory: Uint8Array;
  /** bytes of the frames that wait, by slot: those of a burst more than may wait */
  readonly #lens: Int32Array;
  readonly #slotsOff: number;
  #head = 0;
  #count = 0;
  #sentAt = performance.now();
  #random = 0x9e3779b9;
  /** what reading finds, so that it is not optimised away */
  sink = 0;

  constructor(stream: Stream, workshop: Workshop, { noisy }: ModeSettings) {
    this.#stream = stream;
    this.#workshop = workshop;
    this.#config = noisy;
    this.#memory = new Uint8Array(noisy.memoryMiB * 2 ** 20);
    const slots = noisy.bufferPackets > 0 ? noisy.bufferPackets + BURST_SIZE : 0;
    this.#lens = new Int32Array(slots);
    this.#slotsOff = workshop.allocMuch(slots * SLOT_BYTES);
  }

  turn(): number {
    const stream = this.#stream;
    const { bufferPackets, flushMs } = this.#config;
    const n = stream.receive();
    let sent = 0;
    if (n > 0) {
      this.#work(n);
      if (bufferPackets === 0) {
        sent = stream.sendAll();
        stream.complete();
        return n;
      }
      this.#keep();
      stream.complete();
      if (this.#count > bufferPackets) sent = this.#sendOldest(n);
    }
    if (flushMs > 0 && this.#count > 0 && sent === 0 && performance.now() - this.#sentAt >= flushMs)
      while (this.#count > 0) sent += this.#sendOldest(BURST_SIZE);
    return n + sent;
  }

  /** Copies the burst to the end of the queue. */
  #keep(): void {
    const { windows, own, burst } = this.#workshop;
    const { first, len: lens, segments, count } = burst;
    const { list } = this.#copyStage;
    for (let i = 0; i < count; i++) {
      if (lens[i] < 0 || lens[i] > SLOT_BYTES) {
        this.#stream.counters[STREAM_SLOTS.tx_dropped]++;
        continue;
      }
      const slot = (this.#head + this.#count) % this.#lens.length;
      let to = this.#slotsOff + slot * SLOT_BYTES;
      for (let s = first[i]; s < first[i + 1]; s++) {
        list[0] = segments.off[s];
        list[1] = to;
        list[2] = segments.len[s];
        this.#copyStage.flush(windows[segments.window[s]], own, 1);
        to += segments.len[s];
      }
      this.#lens[slot] = lens[i];
      this.#count++;
    }
  }

  /** Sends the first `n` that wait, or all; what is not taken is lost. @returns how many were sent */
  #sendOldest(n: number): number {
    const workshop = this.#workshop;
    workshop.clear();
    const all = Math.min(n, this.#count);
    for (let i = 0; i < all; i++) {
      const slot = (this.#head + i) % this.#lens.length;
      workshop.put(i, this.#slotsOff + slot * SLOT_BYTES, this.#lens[slot]);
    }
    this.#head = (this.#head + all) % this.#lens.length;
    this.#count -= all;
    this.#sentAt = performance.now();
    return this.#stream.sendAll();
  }

  #nextLine(): number {
    let x = this.#random;
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    this.#random = x;
    return ((x >>> 0) * LINE) % this.#memory.length;
  }

  /** Looks things up for `n` packets. */
  #work(n: number): void {
    const { writes, reads, readWrites } = this.#config;
    const memory = this.#memory;
    if (memory.length === 0) return;
    for (let i = 0; i < n * writes; i++) memory[this.#nextLine()] = i;
    for (let i = 0; i < n * reads; i++) this.sink += memory[this.#nextLine()];
    for (let i = 0; i < n * readWrites; i++) {
      this.sink += memory[this.#nextLine()];
      memory[this.#nextLine()] = i;
    }
  }
}
