/**
 * Ports of `src/port` on a thread of the test's own.
 */
import { openWindow, unmapFrom, type WindowViews } from '../../src/mem/window.ts';
import type { DeviceOpening, DevicePort, DeviceSpec, DeviceTools, OpenedDevice } from '../../src/port/device-port.ts';
import type { Port } from '../../src/port/port.ts';
import { parseVdev, type Vdev, type VdevOf } from '../../src/port/vdev.ts';
import { counterBlock, PORT_SLOTS, type PortCounter, readCounters } from '../../src/stats/counters.ts';
import { BURST_SIZE } from '../../src/virtio-net/burst.ts';
import { RingStage } from '../../src/virtio-net/ring-stage.ts';
import { MAX_SEGMENTS } from '../../src/virtqueue/segments.ts';
import { pool } from './ram.ts';

/** Where the test's frames lie in its window, and the most that they take. */
const FRAMES_OFF = 65536;
const FRAMES_BYTES = 2 ** 24;

/** A --vdev of a kind that the caller knows. */
export function vdevOf<Kind extends Vdev['kind']>(kind: Kind, text: string): VdevOf<Kind> {
  const vdev = parseVdev(text);
  if (vdev.kind !== kind) throw new Error(`${text} is no ${kind}`);
  return vdev as VdevOf<Kind>;
}

export const opening = (lcores = 1): DeviceOpening => ({ pool, lcores });

/** What the ports of one thread share, and bursts of the test's own frames. */
export class TestThread {
  readonly windows: WindowViews[] = [];
  readonly tools: DeviceTools = { ringStage: new RingStage(), windows: this.windows };
  readonly #handle = pool.acquire();
  readonly #ids = Int32Array.from({ length: BURST_SIZE }, (_, i) => i);
  #nextId = 0;

  constructor() {
    this.windows[this.#handle.id] = openWindow(this.#handle);
  }

  get burst() {
    return this.tools.ringStage.burst;
  }

  /** This thread's port of what has been opened. */
  port<Spec extends DeviceSpec, P extends DevicePort>(
    opened: OpenedDevice<Spec>,
    create: (id: number, counters: Float64Array, spec: Spec, tools: DeviceTools) => P,
    lcore = 0,
    lcores = 1,
  ): P {
    const spec = structuredClone(opened.spec(lcore, lcores));
    for (const window of spec.windows) this.windows[window.id] ??= openWindow(window);
    return create(this.#nextId++, new Float64Array(counterBlock(PORT_SLOTS)), spec, this.tools);
  }

  /** Fills the burst with frames, each cut into pieces of at most `piece` bytes. */
  fill(frames: readonly Uint8Array[], piece = Number.POSITIVE_INFINITY): void {
    const { burst } = this;
    const { u8, id } = this.windows[this.#handle.id];
    burst.clear();
    burst.needs.fill(0);
    let off = FRAMES_OFF;
    for (const [i, frame] of frames.entries()) {
      burst.first[i] = burst.segments.count;
      burst.len[i] = frame.length;
      burst.frontBytes.fill(0, 16 * i, 16 * i + 16);
      burst.frontBytes.set(frame.subarray(0, 16), 16 * i);
      burst.delivered[i] = 0;
      for (let at = 0; at < frame.length; at += piece) {
        const part = frame.subarray(at, Math.min(at + piece, frame.length));
        u8.set(part, off);
        if (burst.segments.count === MAX_SEGMENTS) throw new RangeError('more pieces than a burst may have');
        burst.segments.push(id, off, part.length);
        off += part.length + 7;
      }
    }
    burst.first[frames.length] = burst.segments.count;
    burst.count = frames.length;
  }

  /** Sends a burst's frames, 32 at a time. @returns how many were taken */
  send(port: Port, frames: readonly Uint8Array[], piece?: number): number {
    let taken = 0;
    for (let at = 0; at < frames.length; at += BURST_SIZE) {
      const part = frames.slice(at, at + BURST_SIZE);
      this.fill(part, piece);
      taken += port.transmit(this.#ids, 0, part.length);
    }
    return taken;
  }

  /** The frames of the burst as it is. */
  frames(): Buffer[] {
    const { burst } = this;
    return Array.from({ length: burst.count }, (_, i) => {
      const parts: Uint8Array[] = [];
      for (let s = burst.first[i]; s < burst.first[i + 1]; s++) {
        const { u8 } = this.windows[burst.segments.window[s]];
        parts.push(u8.slice(burst.segments.off[s], burst.segments.off[s] + burst.segments.len[s]));
      }
      return Buffer.concat(parts);
    });
  }

  /** One burst from `source` to `target`. @returns packets received */
  forward(source: Port, target: Port, queue = 0): number {
    const n = source.receive(queue);
    if (n === 0) return 0;
    target.transmit(this.#ids, 0, n);
    source.complete(queue);
    return n;
  }

  close(): void {
    unmapFrom(this.#handle, FRAMES_OFF, FRAMES_BYTES);
    pool.release(this.#handle);
  }
}

export const countersOf = (port: Port): Record<PortCounter, number> => readCounters(PORT_SLOTS, port.counters);
