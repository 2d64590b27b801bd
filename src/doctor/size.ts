/**
 * Sizes in bytes in words.
 */

const UNITS: readonly (readonly [name: string, bytes: number])[] = [
  ['TiB', 2 ** 40],
  ['GiB', 2 ** 30],
  ['MiB', 2 ** 20],
  ['KiB', 2 ** 10],
];

/** `512 MiB`: in the largest unit of which it is a whole number. */
export function sizeInWords(bytes: number): string {
  const [name, unit] = UNITS.find(([, one]) => bytes >= one && bytes % one === 0) ?? ['bytes', 1];
  return `${bytes / unit} ${name}`;
}
