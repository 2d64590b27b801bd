/**
 * A port on the test's own thread: frames are given to it as a switch does, a burst at a time, and taken from it.
 */
import { openWindow, type WindowHandle, type WindowViews } from '../../src/mem/window.ts';
import type { DevicePort, DeviceSpec, DeviceTools } from '../../src/port/device-port.ts';
import { counterBlock, PORT_SLOTS, type PortCounter, readCounters } from '../../src/stats/counters.ts';
import { BURST_SIZE, FRONT_BYTES, HEADER_BYTES } from '../../src/virtio-net/burst.ts';
import { RingStage } from '../../src/virtio-net/ring-stage.ts';
import { pool } from './ram.ts';

/** Where frames to be sent lie in the bench's own window: room for each of a burst. */
const FRAMES_OFF = 65536;
const FRAME_ROOM = 131072;

type PortClass<Spec> = new (id: number, counters: Float64Array, spec: Spec, tools: DeviceTools) => DevicePort;

/** A frame, and what its sender leaves undone: the virtio_net_hdr that says so, and the NEED_ bits it comes to. */
export interface Undone {
  readonly frame: Uint8Array;
  readonly needs: number;
  readonly header: Uint8Array;
}

export class PortBench<Spec extends DeviceSpec> {
  readonly port: DevicePort;
  readonly tools: DeviceTools;
  readonly #ownWindow: WindowHandle = pool.acquire();
  readonly #own: WindowViews;

  /** @param spec its windows are of `pool` in ram.ts */
  constructor(Class: PortClass<Spec>, spec: Spec) {
    const windows: WindowViews[] = [];
    for (const window of spec.windows) windows[window.id] = openWindow(window);
    this.#own = openWindow(this.#ownWindow);
    windows[this.#own.id] = this.#own;
    this.tools = { ringStage: new RingStage(), windows };
    this.port = new Class(0, new Float64Array(counterBlock(PORT_SLOTS)), spec, this.tools);
  }

  get counters(): Record<PortCounter, number> {
    return readCounters(PORT_SLOTS, this.port.counters);
  }

  /** What has come on a queue, at most a burst, copied. */
  receive(queue = 0): Buffer[] {
    const { burst } = this.tools.ringStage;
    const frames: Buffer[] = [];
    const n = this.port.receive(queue);
    for (let i = 0; i < n; i++) {
      const pieces: Uint8Array[] = [];
      for (let s = burst.first[i]; s < burst.first[i + 1]; s++) {
        const off = burst.segments.off[s];
        pieces.push(this.tools.windows[burst.segments.window[s]].u8.slice(off, off + burst.segments.len[s]));
      }
      const frame = Buffer.concat(pieces);
      const front = Buffer.alloc(FRONT_BYTES);
      frame.copy(front, 0, 0, FRONT_BYTES);
      const shown = burst.frontBytes.subarray(FRONT_BYTES * i, FRONT_BYTES * (i + 1));
      if (frame.length !== burst.len[i] || !front.equals(shown)) throw new Error('the burst contradicts itself');
      frames.push(frame);
    }
    if (n > 0) this.port.complete(queue);
    return frames;
  }

  /**
   * Sends up to 32 frames as one burst, every third in two pieces.
   * @returns how many the port took
   */
  send(frames: readonly (Uint8Array | Undone)[]): number {
    if (frames.length > BURST_SIZE) throw new RangeError('more than a burst');
    const { burst } = this.tools.ringStage;
    burst.segments.count = 0;
    burst.needs.fill(0);
    burst.offloads = false;
    const list = Int32Array.from(frames, (_, i) => i);
    for (const [i, one] of frames.entries()) {
      const { frame, needs, header } = one instanceof Uint8Array ? { frame: one, needs: 0, header: undefined } : one;
      const off = FRAMES_OFF + FRAME_ROOM * i;
      this.#own.u8.set(frame, off);
      burst.first[i] = burst.segments.count;
      const cut = i % 3 === 2 ? frame.length >> 1 : frame.length;
      burst.segments.push(this.#own.id, off, cut);
      if (cut < frame.length) burst.segments.push(this.#own.id, off + cut, frame.length - cut);
      burst.len[i] = frame.length;
      burst.needs[i] = needs;
      burst.delivered[i] = 0;
      if (header !== undefined) {
        burst.headerBytes.set(header, HEADER_BYTES * i);
        burst.offloads = true;
      }
    }
    burst.first[frames.length] = burst.segments.count;
    burst.count = frames.length;
    const taken = this.port.transmit(list, 0, frames.length);
    const delivered = burst.delivered.subarray(0, frames.length).reduce((sum, n) => sum + n, 0);
    if (delivered !== taken) throw new Error(`${taken} taken, ${delivered} marked so`);
    return taken;
  }

  /** Closes the port. */
  close(): void {
    this.port.close();
    pool.release(this.#ownWindow);
  }
}
