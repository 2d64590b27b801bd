/** Sizes of memory as QEMU writes them. */

const UNITS = 'BKMGTPE';
export const MIB = 2 ** 20;

/**
 * Bytes of a size such as `4G`, `1.5g` or `4096`.
 * @param unit what a number without a letter counts, bytes
 * @returns undefined for what is no size
 */
export function parseSize(text: string, unit: number): number | undefined {
  const [, digits, letter] = /^(0x[\da-f]+|\d+(?:\.\d+)?)([bkmgtpe]?)$/i.exec(text) ?? [];
  if (digits === undefined) return undefined;
  const bytes = Number(digits) * (letter === '' ? unit : 1024 ** UNITS.indexOf(letter.toUpperCase()));
  return Number.isSafeInteger(bytes) ? bytes : undefined;
}

/** The same size for QEMU and for people: in MiB where it is a whole number of them. */
export function sizeText(bytes: number): string {
  return bytes % MIB === 0 ? `${bytes / MIB}M` : String(bytes);
}
