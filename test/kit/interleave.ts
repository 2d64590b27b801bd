/**
 * Puts the steps of a second party between the atomic accesses of a function, in every way there is: what two threads may do to each
 * other, without waiting for chance to bring it about.
 */

/** Runs `body`; before its `i`th Atomics.load or .store, `hook` is called with i. @returns their number */
function watched(body: () => void, hook: (i: number) => void): number {
  const { load, store } = Atomics;
  let count = 0;
  let inHook = false;
  const step = () => {
    if (inHook) return;
    inHook = true;
    hook(count++);
    inHook = false;
  };
  try {
    Atomics.load = ((array: Int32Array, index: number) => {
      step();
      return load(array, index);
    }) as typeof Atomics.load;
    Atomics.store = ((array: Int32Array, index: number, value: number) => {
      step();
      return store(array, index, value);
    }) as typeof Atomics.store;
    body();
  } finally {
    Object.assign(Atomics, { load, store });
  }
  return count;
}

/**
 * Makes a world anew for every interleaving, lets its two parties act, and has the outcome checked.
 * @param make gives the one party's function and the other's two steps, of which the second may come at the same point as the first.
 * @returns how many interleavings there were
 */
export function interleave(
  make: () => { body: () => void; first: () => void; second: () => void; check: (when: string) => void },
): number {
  const counting = make();
  const points = watched(counting.body, () => {});
  let ways = 0;
  for (let i = 0; i <= points; i++) {
    for (let j = i; j <= points; j++, ways++) {
      const { body, first, second, check } = make();
      const at = (point: number) => {
        if (point === i) first();
        if (point === j) second();
      };
      // what is left is to come after all accesses
      for (let point = watched(body, at); point <= points; point++) at(point);
      check(`first step before access ${i}, second before access ${j}, of ${points}`);
    }
  }
  return ways;
}
