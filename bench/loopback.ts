/**
 * A device that does nothing but advance used indexes: what the generator reaches with it is the generator's own ceiling.
 * It moves no payload, and runs on the generator's thread, so its cost counts against the ceiling.
 */
import { VRING_AVAIL, VRING_USED_ELEM } from '../src/uapi/virtio-ring.ts';
import type { SplitDriver } from '../src/virtqueue/split-driver.ts';
import type { StaticPort, StaticRing } from './static-port.ts';

/** Frames a turn, as the switches take them. */
const BURST = 32;

export class Loopback {
  readonly #ports: readonly StaticPort[];

  /** Port i's frames "arrive" at port i + 1. `frameLen`: bytes, header included, that the used rings tell. */
  constructor(ports: readonly StaticPort[], drivers: readonly SplitDriver[], frameLen: number) {
    this.#ports = ports;
    const rings = ports.flatMap(({ rx, tx }) => [rx, tx]);
    for (const [i, ring] of rings.entries()) layOut(ring, drivers[i], i % 2 === 0 ? frameLen : 0);
  }

  /** One turn: takes up to a burst of what each port sends, and fills as many receive buffers next door. */
  poll(): void {
    const ports = this.#ports;
    for (let i = 0; i < ports.length; i++) {
      const n = use(ports[i].tx, BURST);
      if (n > 0) use(ports[i + 1 < ports.length ? i + 1 : 0].rx, n);
    }
  }
}

/** Marks up to `max` offered buffers used. @returns how many. */
function use({ u16, availIdxIdx, usedIdxIdx }: StaticRing, max: number): number {
  const used = u16[usedIdxIdx];
  const offered = (Atomics.load(u16, availIdxIdx) - used) & 0xffff;
  const n = Math.min(offered, max);
  if (n > 0) Atomics.store(u16, usedIdxIdx, (used + n) & 0xffff);
  return n;
}

/** Writes all used entries once: in the order of the available ring they are always right. */
function layOut(ring: StaticRing, { views, place }: SplitDriver, len: number): void {
  for (let i = 0; i <= ring.mask; i++) {
    const elem = place.usedOff + VRING_AVAIL.size + VRING_USED_ELEM.size * i;
    views.dv.setUint32(elem + VRING_USED_ELEM.off.id, ring.idAt(i), true);
    views.dv.setUint32(elem + VRING_USED_ELEM.off.len, len, true);
  }
  views.dv.setUint16(place.usedOff + VRING_AVAIL.off.flags, 1, true); // no kicks
}
