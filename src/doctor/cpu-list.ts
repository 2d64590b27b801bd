/**
 * Sets of numbers as the kernel writes them: `0-3,6`.
 */

/** More of them are not taken in: no machine has so many. */
const MAX_NUMBER = 65535;

/** The numbers in a list, ascending; what is malformed is left out. */
export function cpuList(text: string): number[] {
  const numbers = new Set<number>();
  for (const part of text.trim().split(',')) {
    const [, from, to = from] = /^(\d+)(?:-(\d+))?/.exec(part) ?? [];
    if (from === undefined) continue;
    for (let n = Number(from); n <= Math.min(Number(to), MAX_NUMBER); n++) numbers.add(n);
  }
  return [...numbers].sort((a, b) => a - b);
}

/** The same, the other way round. */
export function listText(numbers: readonly number[]): string {
  const ranges: [number, number][] = [];
  for (const n of numbers) {
    const last = ranges.at(-1);
    if (last !== undefined && last[1] === n - 1) last[1] = n;
    else ranges.push([n, n]);
  }
  return ranges.map(([from, to]) => (from === to ? `${from}` : `${from}-${to}`)).join(',');
}
