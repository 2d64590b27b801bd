/** The dirty log as the front end reads it. */
import type { Place } from '../../src/mem/guest-memory.ts';
import type { WindowViews } from '../../src/mem/window.ts';

/** The numbers of the pages whose bits are set; with `take` the bits are taken, as a front end does between two rounds. */
export function dirtyPages(
  window: WindowViews,
  { off, size }: Pick<Place, 'off'> & { size: number },
  { take = false } = {},
): Set<number> {
  const pages = new Set<number>();
  for (let byte = 0; byte < size; byte++) {
    const bits = take ? Atomics.exchange(window.u8, off + byte, 0) : Atomics.load(window.u8, off + byte);
    for (let bit = 0; bit < 8; bit++) if ((bits >> bit) & 1) pages.add(byte * 8 + bit);
  }
  return pages;
}
