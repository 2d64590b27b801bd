/**
 * The throughput of RFC 2544: the highest rate at which no frame is lost.
 * @see RFC 2544 §26.1
 */

/** What a trial at some rate says: `unclear` if the one who measured was disturbed, or could not send so fast. */
export type Verdict = 'pass' | 'loss' | 'unclear';

export interface SearchStep {
  /** frames a second */
  readonly rate: number;
  readonly verdict: Verdict;
}

export interface SearchResult {
  /** The highest rate that passed; 0 if none did. */
  readonly rate: number;
  /** Why it is not more: the verdict on the lowest higher rate that was tried, or `top`, for the highest of all passed. */
  readonly bound: 'loss' | 'unclear' | 'top';
  readonly steps: readonly SearchStep[];
}

export interface SearchLimits {
  /** the first rate to be tried, frames a second */
  readonly top: number;
  /** trials at most, at least 1 */
  readonly steps: number;
  /** It ends when it is known to so many percent of the rate. */
  readonly percent: number;
}

/** Tries the top, and halves from there. What is unclear counts as not passed. */
export async function searchRate(
  { top, steps: most, percent }: SearchLimits,
  trial: (rate: number) => Promise<Verdict>,
): Promise<SearchResult> {
  const steps: SearchStep[] = [];
  let low = 0;
  let high = top;
  let bound: SearchResult['bound'] = 'top';
  for (let rate = top; steps.length < most; rate = (low + high) / 2) {
    const verdict = await trial(rate);
    steps.push({ rate, verdict });
    if (verdict === 'pass') {
      low = rate;
      if (rate === top) break;
    } else {
      high = rate;
      bound = verdict;
    }
    if (high - low <= (high * percent) / 100) break;
  }
  return { rate: low, bound, steps };
}

/** Repeats a trial that did not pass, so often in all: what disturbs a machine for a moment is not what is looked for. */
export async function bestOf(tries: number, trial: () => Promise<Verdict>): Promise<Verdict> {
  let verdict: Verdict = 'unclear';
  for (let n = 0; n < tries; n++) {
    const one = await trial();
    if (one === 'pass') return one;
    // a loss that is the switch's own, once, says more than a trial that says nothing
    if (one === 'loss') verdict = one;
  }
  return verdict;
}
