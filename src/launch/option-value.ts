/**
 * The value of a QEMU option: `key=value,…` with a comma written twice, or JSON for the options that take it.
 * Reading a value and printing it again gives the same text; changes keep the order of the keys.
 * @see QEMU util/qemu-option.c (opts_parse), util/keyval.c
 */
import { ConfigError } from '../errors.ts';

/** What a key may be set to. */
export type Scalar = string | number | boolean;

/** The keys of an option's value. */
export interface OptionValue {
  /** The text of a key: booleans are `on` and `off`; of a key given twice the last one counts. */
  get(key: string): string | undefined;
  /** Sets a key in its place, or adds it at the end. */
  set(key: string, value: Scalar): void;
  delete(key: string): void;
  toString(): string;
}

/** The key that the first word of an option's value may leave out. */
const IMPLIED: Readonly<Record<string, string>> = {
  ...{ machine: 'type', m: 'size', device: 'driver', netdev: 'type', nic: 'type', net: 'type', object: 'qom-type' },
  ...{ numa: 'type', chardev: 'backend', accel: 'accel' },
};

export function impliedKey(option: string): string {
  return IMPLIED[option] ?? '';
}

/**
 * Reads a value.
 * @param implied the key that its first word may leave out; empty for none
 * Throws ConfigError for what begins as JSON and is none.
 */
export function parseValue(text: string, implied: string): OptionValue {
  return text.startsWith('{') ? new JsonValue(text) : new KeyValue(text, implied);
}

/** A value that is made, of `key=value` pairs behind its first word. */
export function makeValue(first: string, pairs: Readonly<Record<string, Scalar | undefined>>): string {
  const value = new KeyValue(doubled(first), 'type');
  for (const [key, scalar] of Object.entries(pairs)) if (scalar !== undefined) value.set(key, scalar);
  return value.toString();
}

const doubled = (text: string) => text.replaceAll(',', ',,');
const textOf = (value: Scalar) => (typeof value === 'boolean' ? (value ? 'on' : 'off') : String(value));

interface Pair {
  /** empty for the first word without a key */
  readonly key: string;
  /** undefined for a flag, a key without a value */
  readonly value: string | undefined;
  /** the first word, whose key is left out */
  readonly bare?: true;
}

class KeyValue implements OptionValue {
  #pairs: Pair[];

  constructor(text: string, implied: string) {
    this.#pairs = [];
    for (let at = 0; at <= text.length; ) {
      const [word, key] = /^([^=,]*)=/.exec(text.slice(at)) ?? [''];
      const bare = key === undefined && at === 0 && implied !== '';
      if (key === undefined && !bare) {
        // a key without a value has no doubled commas
        const end = text.indexOf(',', at);
        const flag = text.slice(at, end < 0 ? undefined : end);
        this.#pairs.push({ key: flag, value: undefined });
        at += flag.length + 1;
        continue;
      }
      at += word.length;
      const [typed] = /^(?:[^,]|,,)*/.exec(text.slice(at))!;
      const value = typed.replaceAll(',,', ',');
      this.#pairs.push(bare ? { key: implied, value, bare } : { key: key as string, value });
      at += typed.length + 1;
    }
  }

  get(key: string): string | undefined {
    const pair = this.#pairs.findLast((one) => one.key === key || (one.value === undefined && one.key === `no${key}`));
    if (pair === undefined) return undefined;
    return pair.value ?? (pair.key === key ? 'on' : 'off');
  }

  set(key: string, value: Scalar): void {
    const at = this.#pairs.findIndex((one) => one.key === key);
    const bare = this.#pairs[at]?.bare;
    const pair = { key, value: textOf(value), ...(bare ? { bare } : {}) };
    const others = this.#pairs.filter((one, i) => i < at || !this.#means(one, key));
    if (at < 0) others.push(pair);
    else others.splice(at, 0, pair);
    // what stands between two commas, or behind the last one: more behind it would make a doubled comma
    this.#pairs = others.filter((one) => one.key !== '' || one.value !== undefined);
  }

  delete(key: string): void {
    this.#pairs = this.#pairs.filter((one) => !this.#means(one, key));
  }

  #means(pair: Pair, key: string): boolean {
    return pair.key === key || (pair.value === undefined && pair.key === `no${key}`);
  }

  toString(): string {
    const print = ({ key, value, bare }: Pair) => {
      if (value === undefined) return key;
      const text = doubled(value);
      return bare && !/^[^,=]*=/.test(text) ? text : `${key}=${text}`;
    };
    return this.#pairs.map(print).join(',');
  }
}

class JsonValue implements OptionValue {
  readonly #text: string;
  readonly #object: Record<string, unknown>;
  #changed = false;

  constructor(text: string) {
    this.#text = text;
    try {
      this.#object = JSON.parse(text);
    } catch (error) {
      const problem = `is no JSON: ${(error as Error).message}`;
      throw new ConfigError('CONFIG_INVALID_VALUE', text.slice(0, 80), problem);
    }
  }

  get(key: string): string | undefined {
    const value = Object.hasOwn(this.#object, key) ? this.#object[key] : undefined;
    return ['string', 'number', 'boolean'].includes(typeof value) ? textOf(value as Scalar) : undefined;
  }

  set(key: string, value: Scalar): void {
    this.#object[key] = value;
    this.#changed = true;
  }

  delete(key: string): void {
    this.#changed ||= Object.hasOwn(this.#object, key);
    delete this.#object[key];
  }

  toString(): string {
    return this.#changed ? JSON.stringify(this.#object) : this.#text;
  }
}
