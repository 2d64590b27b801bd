/**
 * A port of one queue for tests: what it receives is what the test has put in, in pieces of any length; what it transmits can be read.
 */
import type { WindowViews } from '../../src/mem/window.ts';
import type { DevicePort } from '../../src/port/device-port.ts';
import { counterBlock, PORT_SLOTS } from '../../src/stats/counters.ts';
import { type Burst, FRONT_BYTES } from '../../src/virtio-net/burst.ts';
import { Ram } from './ram.ts';

const FRAME_ROOM = 65536;

export class FakePort implements DevicePort {
  readonly id: number;
  readonly counters = new Float64Array(counterBlock(PORT_SLOTS));
  queues = 1;
  /** the queue of each receive */
  readonly asked: number[] = [];
  ticks = 0;
  readonly eventFds: readonly number[] = [];
  canTransmit = true;
  /** what waits to be received, each frame in pieces */
  readonly arriving: Buffer[][] = [];
  /** what was transmitted */
  readonly sent: Buffer[] = [];
  /** frames that it still takes, and what every refusal adds to that */
  room = Number.POSITIVE_INFINITY;
  roomAfterRefusal = 0;
  completed = 0;
  drained = 0;
  closed = false;
  readonly #ram = new Ram();
  readonly #burst: Burst;
  readonly #windows: WindowViews[];

  constructor(id: number, burst: Burst, windows: WindowViews[]) {
    this.id = id;
    this.#burst = burst;
    this.#windows = windows;
    windows[this.#ram.handle.id] = this.#ram.views;
  }

  /** Frames arrive, each cut at these places. */
  arrive(frame: Buffer, ...cuts: readonly number[]): void {
    const ends = [...cuts, frame.length];
    this.arriving.push(ends.map((end, i) => frame.subarray(i === 0 ? 0 : ends[i - 1], end)));
  }

  receive(queue: number): number {
    this.asked.push(queue);
    const burst = this.#burst;
    const all = this.arriving.splice(0, burst.limit);
    burst.segments.count = 0;
    burst.needs.fill(0);
    for (const [i, pieces] of all.entries()) {
      burst.first[i] = burst.segments.count;
      for (const [k, piece] of pieces.entries()) {
        const off = 65536 + i * FRAME_ROOM + k * 4096;
        piece.copy(this.#ram.bytes, off);
        burst.segments.push(this.#ram.handle.id, off, piece.length);
      }
      const frame = Buffer.concat(pieces);
      burst.len[i] = frame.length;
      burst.frontBytes.fill(0, FRONT_BYTES * i, FRONT_BYTES * (i + 1));
      burst.frontBytes.set(frame.subarray(0, FRONT_BYTES), FRONT_BYTES * i);
    }
    burst.first[all.length] = burst.segments.count;
    burst.count = all.length;
    return all.length;
  }

  transmit(list: Int32Array, from: number, to: number): number {
    const { first, len, segments } = this.#burst;
    let k = from;
    for (; k < to && this.room > 0; k++, this.room--) {
      const packet = list[k];
      const pieces: Uint8Array[] = [];
      for (let s = first[packet]; s < first[packet + 1]; s++)
        pieces.push(this.#windows[segments.window[s]].u8.slice(segments.off[s], segments.off[s] + segments.len[s]));
      const frame = Buffer.concat(pieces);
      if (frame.length !== len[packet])
        throw new Error(`packet ${packet}: ${frame.length} bytes, said to be ${len[packet]}`);
      this.sent.push(frame);
    }
    if (k < to) this.room += this.roomAfterRefusal;
    return k - from;
  }

  complete(): void {
    this.completed++;
  }

  prepareSleep(): boolean {
    return this.arriving.length === 0;
  }

  drain(): void {
    this.drained++;
  }

  tick(): void {
    this.ticks++;
  }

  close(): void {
    this.closed = true;
  }
}
