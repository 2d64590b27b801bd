/**
 * Window memory of a port that no kernel and no peer shares: an area for each lcore that uses it.
 */
import { firstOffset, unmapFrom, WINDOW_USABLE_BYTES, type WindowHandle } from '../mem/window.ts';
import type { DeviceOpening } from './device-port.ts';

const PAGE = 4096;
/** The last digits of a device's name, as its number. */
const NUMBER = /\d+$/;

export class PortWindow {
  readonly handle: WindowHandle;
  readonly #opening: DeviceOpening;
  readonly #first: number;
  readonly #areaBytes: number;
  readonly #areas: number;

  /** Acquires a window; the caller closes it. @param areas one for each lcore by default */
  constructor(opening: DeviceOpening, areaBytes: number, areas = opening.lcores) {
    this.#areaBytes = Math.ceil(areaBytes / PAGE) * PAGE;
    this.#areas = areas;
    this.#opening = opening;
    this.handle = opening.pool.acquire();
    this.#first = firstOffset(this.handle, PAGE);
    if (this.off(areas) <= WINDOW_USABLE_BYTES) return;
    opening.pool.release(this.handle);
    throw new RangeError(`${areas} areas of ${areaBytes} bytes do not fit a window`);
  }

  /** Where area `index` begins. */
  off(index: number): number {
    return this.#first + index * this.#areaBytes;
  }

  /** Gives the window back, once no thread uses it. */
  close(): void {
    unmapFrom(this.handle, this.#first, this.#areas * this.#areaBytes);
    this.#opening.pool.release(this.handle);
  }
}

/** An address for a port that has none by nature: local, with four letters of its kind and its number. */
export function localMac(name: string, letters: string): Uint8Array {
  return Uint8Array.of(2, ...Buffer.from(letters, 'latin1').subarray(0, 4), Number(NUMBER.exec(name)?.[0] ?? 0) & 0xff);
}
