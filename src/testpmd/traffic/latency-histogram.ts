/**
 * A histogram of times, log-linear: every octave of nanoseconds has the same number of buckets, so that the error of what is read
 * from it is below one percent of it, whatever it is. Fixed arrays in shared memory: one thread records, any thread reads.
 */

/** Buckets of an octave, as bits. */
const SUB_BITS = 7;
const SUB = 2 ** SUB_BITS;
/** Times of 2³¹ ns, two seconds, and more are one bucket; the largest is known exactly. */
const OCTAVES = 31 - SUB_BITS;
const BUCKETS = SUB + OCTAVES * SUB + 1;
const OVER = BUCKETS - 1;

/** Float64 slots before the buckets. */
const COUNT = 0;
const SUM = 1;
const MIN = 2;
const MAX = 3;
/** negative times: of another machine's clock */
const IMPOSSIBLE = 4;
const FIRST = 5;

/** Bytes of shared memory for a histogram. */
export const HISTOGRAM_BYTES = 8 * (FIRST + BUCKETS);

const bucketOf = (ns: number): number => {
  if (ns < SUB) return ns;
  const octave = 31 - Math.clz32(ns) - SUB_BITS;
  return SUB * octave + (ns >>> octave);
};

/** The least ns of a bucket. */
const leastOf = (bucket: number): number => {
  if (bucket < SUB) return bucket;
  const octave = Math.floor(bucket / SUB) - 1;
  return (SUB + (bucket % SUB)) * 2 ** octave;
};

/** A row of the histogram as it is shown: an octave. */
export interface LatencyRow {
  /** ns, from this on and below that */
  readonly from: number;
  readonly to: number;
  readonly count: number;
}

export class LatencyHistogram {
  readonly #slots: Float64Array;

  /** @param shared HISTOGRAM_BYTES, zero at first */
  constructor(shared = new SharedArrayBuffer(HISTOGRAM_BYTES)) {
    this.#slots = new Float64Array(shared);
  }

  /** @param ns whole nanoseconds */
  record(ns: number): void {
    const slots = this.#slots;
    if (ns < 0) {
      slots[IMPOSSIBLE]++;
      return;
    }
    if (slots[COUNT] === 0 || ns < slots[MIN]) slots[MIN] = ns;
    if (ns > slots[MAX]) slots[MAX] = ns;
    slots[COUNT]++;
    slots[SUM] += ns;
    slots[FIRST + (ns < 2 ** 31 ? bucketOf(ns) : OVER)]++;
  }

  /** Adds what another has recorded. */
  add(other: LatencyHistogram): void {
    const slots = this.#slots;
    const theirs = other.#slots;
    if (theirs[COUNT] > 0 && (slots[COUNT] === 0 || theirs[MIN] < slots[MIN])) slots[MIN] = theirs[MIN];
    slots[MAX] = Math.max(slots[MAX], theirs[MAX]);
    for (const slot of [COUNT, SUM, IMPOSSIBLE]) slots[slot] += theirs[slot];
    for (let slot = FIRST; slot < slots.length; slot++) slots[slot] += theirs[slot];
  }

  clear(): void {
    this.#slots.fill(0);
  }

  /** times recorded */
  get count(): number {
    return this.#slots[COUNT];
  }

  /** of what was recorded, ns; 0 where nothing was */
  get min(): number {
    return this.#slots[MIN];
  }

  get max(): number {
    return this.#slots[MAX];
  }

  get mean(): number {
    return this.count === 0 ? 0 : this.#slots[SUM] / this.count;
  }

  /** times below zero, which are not in the rest */
  get impossible(): number {
    return this.#slots[IMPOSSIBLE];
  }

  /** The time that `percent` of all are not above, ns: the upper end of its bucket, and never more than the largest. */
  percentile(percent: number): number {
    const slots = this.#slots;
    let left = Math.max(1, Math.ceil((this.count * percent) / 100));
    if (this.count === 0) return 0;
    for (let bucket = 0; bucket < OVER; bucket++) {
      left -= slots[FIRST + bucket];
      if (left <= 0) return Math.min(leastOf(bucket + 1) - 1, this.max);
    }
    return this.max;
  }

  /** The octaves that have some, and those between them. */
  rows(): LatencyRow[] {
    const rows: LatencyRow[] = [];
    // below SUB, a row has what one octave would have; above, as many buckets
    for (let from = 0, to = 1; from < 2 ** 31; from = to, to = from * 2) {
      let count = 0;
      for (let bucket = bucketOf(from); bucket < OVER && leastOf(bucket) < to; bucket++)
        count += this.#slots[FIRST + bucket];
      rows.push({ from, to, count });
    }
    rows.push({ from: 2 ** 31, to: Number.POSITIVE_INFINITY, count: this.#slots[FIRST + OVER] });
    const first = rows.findIndex(({ count }) => count > 0);
    const last = rows.findLastIndex(({ count }) => count > 0);
    return first < 0 ? [] : rows.slice(first, last + 1);
  }
}
