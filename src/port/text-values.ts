/**
 * How the text of a value is read: of an option on the command line, of a key of a --vdev.
 */

/** How the text of a value is read. */
export interface ValueType<T> {
  /** The valid values, in words, for help and errors. */
  readonly range: string;
  /** The value, or undefined when the text is not valid. */
  readonly parse: (text: string) => T | undefined;
}

/** Any text but the empty one. */
export const TEXT: ValueType<string> = { range: 'any text', parse: (text) => text || undefined };

/** Whole decimal numbers from `min` to `max`. */
export function integer(min: number, max: number): ValueType<number> {
  const parse = (text: string) => {
    const value = Number(text);
    return /^\d+$/.test(text) && value >= min && value <= max ? value : undefined;
  };
  return { range: `${min}..${max}`, parse };
}

/** The powers of two from `min` to `max`. */
export function powerOfTwo(min: number, max: number): ValueType<number> {
  const parse = (text: string) => {
    const value = integer(min, max).parse(text);
    return value === undefined || (value & (value - 1)) !== 0 ? undefined : value;
  };
  return { range: `${min}..${max}, a power of two`, parse };
}

/** The numbers 0 and 1 as a switch. */
export const ON_OFF: ValueType<boolean> = {
  range: '0|1',
  parse: (text) => {
    const value = integer(0, 1).parse(text);
    return value === undefined ? undefined : value === 1;
  },
};

/** One of some words. */
export function choice<T extends string>(...words: readonly T[]): ValueType<T> {
  return { range: words.join('|'), parse: (text) => words.find((word) => word === text) };
}

/** Text of 1 to `max` bytes. */
export function boundedText(noun: string, max: number): ValueType<string> {
  const parse = (text: string) => {
    const length = Buffer.byteLength(text);
    return length >= 1 && length <= max ? text : undefined;
  };
  return { range: `${noun} of 1 to ${max} bytes`, parse };
}

/** The address of one station: six bytes in hexadecimal, the first one even. As text, lower case. */
export const MAC_ADDRESS: ValueType<string> = {
  range: 'the address of one station, for example 52:54:00:12:34:56',
  parse: (text) => {
    const isMac = /^[\da-f]{2}(?::[\da-f]{2}){5}$/i.test(text);
    return isMac && Number.parseInt(text.slice(0, 2), 16) % 2 === 0 ? text.toLowerCase() : undefined;
  },
};

/** The name that is most like `typed`; there is at least one. */
export function nearestName(typed: string, names: readonly string[]): string {
  return names.reduce((best, name) => (distance(typed, name) < distance(typed, best) ? name : best));
}

/** Levenshtein distance: how many letters to insert, remove or change. */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const above = row;
    row = [i];
    for (let j = 1; j <= b.length; j++) {
      row.push(Math.min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1)));
    }
  }
  return row[b.length];
}
