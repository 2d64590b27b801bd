/** A RawRing of either format. */
import type { Ram } from './ram.ts';
import { RawPackedRing } from './raw-packed-ring.ts';
import type { RawRing, RingOptions } from './raw-ring.ts';
import { RawSplitRing } from './raw-split-ring.ts';

export function makeRing(ram: Ram, num: number, options: RingOptions = {}): RawRing {
  return options.format === 'packed' ? new RawPackedRing(ram, num, options) : new RawSplitRing(ram, num, options);
}
