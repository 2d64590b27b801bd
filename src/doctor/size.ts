/**
 * Sizes in bytes, as QEMU, mount and the kernel write them (`512M`), and in words (`512 MiB`).
 */

const UNITS: readonly (readonly [letter: string, bytes: number])[] = [
  ['T', 2 ** 40],
  ['G', 2 ** 30],
  ['M', 2 ** 20],
  ['K', 2 ** 10],
];

/** Bytes of a size with or without a unit; of one without, `unit` counts. Undefined for anything else. */
export function parseSize(text: string, unit = ''): number | undefined {
  const [, count, letter = ''] = /^(\d+(?:\.\d+)?)([a-z]?)b?$/i.exec(text.trim()) ?? [];
  if (count === undefined) return undefined;
  const name = (letter || unit).toUpperCase();
  const bytes = name === '' || name === 'B' ? 1 : UNITS.find(([one]) => one === name)?.[1];
  return bytes === undefined ? undefined : Number(count) * bytes;
}

const largest = (bytes: number) => UNITS.find(([, unit]) => bytes >= unit && bytes % unit === 0) ?? ['', 1];

/** In words. */
export function sizeText(bytes: number): string {
  const [letter, unit] = largest(bytes);
  return `${bytes / unit} ${letter === '' ? 'bytes' : `${letter}iB`}`;
}

/** As an option takes it. */
export function sizeOption(bytes: number): string {
  const [letter, unit] = largest(bytes);
  return `${bytes / unit}${letter}`;
}
