/**
 * Counts packets in a burst's tally, as the WebAssembly functions do.
 */
import { type Burst, FRONT_WORDS, TALLY_BROADCAST, TALLY_BYTES, TALLY_GROUP } from './burst.ts';

/** Counts packet `i` of the burst, `len` bytes of it. */
export function tallyPacket({ len, front, tally }: Burst, i: number, bytes = len[i]): void {
  tally[sizeClass(bytes)]++;
  tally[TALLY_BYTES] += bytes;
  const word0 = front[FRONT_WORDS * i];
  if ((word0 & 1) === 0) return;
  tally[TALLY_GROUP]++;
  if (word0 === -1 && (front[FRONT_WORDS * i + 1] & 0xffff) === 0xffff) tally[TALLY_BROADCAST]++;
}

function sizeClass(len: number): number {
  if (len <= 64) return len === 64 ? 1 : 0;
  if (len < 1024) return 27 - Math.clz32(len);
  return len < 1519 ? 6 : 7;
}
