/**
 * `--vdev net_<kind><number>,key=value,…` taken apart, as DPDK writes virtual devices. Nothing is opened here.
 */
import { ConfigError } from '../errors.ts';
import { nearestName, type ValueType } from './text-values.ts';
import { VDEV_KINDS, type VdevKey, type VdevKind } from './vdev-kinds.ts';

type Kinds = typeof VDEV_KINDS;

type ValueOf<K> = K extends { type: ValueType<infer T> }
  ? K extends { repeats: true }
    ? readonly T[]
    : K extends { required: true } | { default: string }
      ? T
      : T | undefined
  : never;

/** A virtual device of one kind. */
export interface VdevOf<Kind extends keyof Kinds> {
  /** the first of the kind's names, whichever was used */
  readonly kind: Kind;
  /** as given: `net_tap0` */
  readonly name: string;
  /** what follows the kind in the name */
  readonly number: number;
  /** By key: as given, else the default, else undefined; of keys that repeat a list. */
  readonly values: { readonly [Key in keyof Kinds[Kind]['keys']]: ValueOf<Kinds[Kind]['keys'][Key]> };
  /** for the user: what was given without effect */
  readonly notes: readonly string[];
}

/** A virtual device; `kind` tells which values there are. */
export type Vdev = { [Kind in keyof Kinds]: VdevOf<Kind> }[keyof Kinds];

const kindsByName = new Map<string, keyof Kinds>();
for (const [kind, { aliases }] of Object.entries(VDEV_KINDS))
  for (const name of [kind, ...aliases]) kindsByName.set(name, kind as keyof Kinds);

/**
 * Reads the value of one --vdev. Throws ConfigError: no such kind (CONFIG_INVALID_VALUE), no such key (CONFIG_UNKNOWN_OPTION), a
 * value out of its range, twice or missing.
 */
export function parseVdev(text: string): Vdev {
  const [name, ...settings] = text.split(',');
  const { kind, number } = readName(text, name);
  const { keys }: VdevKind = VDEV_KINDS[kind];
  const given = new Map<string, unknown[]>();
  for (const setting of settings) {
    const [key, value] = readSetting(text, kind, keys, setting);
    const earlier = given.get(key) ?? [];
    if (earlier.length > 0 && !keys[key].repeats) throw fault(text, 'CONFIG_CONFLICT', `${key} is given twice`);
    given.set(key, [...earlier, value]);
  }
  const values = Object.fromEntries(
    Object.entries(keys).map(([key, row]) => [key, settled(text, key, row, given.get(key) ?? [])]),
  );
  const notes = [...given.keys()].flatMap((key) => {
    const { note } = keys[key];
    return note === undefined ? [] : `--vdev ${name}: ${key}: ${note}`;
  });
  // the table, by which the values were read, is what the type was made from
  return { kind, name, number, values, notes } as unknown as Vdev;
}

/** Reads all values of --vdev, in order. Throws ConfigError as `parseVdev` does, and for a name given twice. */
export function parseVdevs(texts: readonly string[]): Vdev[] {
  const vdevs: Vdev[] = [];
  for (const text of texts) {
    const vdev = parseVdev(text);
    if (vdevs.some(({ kind, number }) => kind === vdev.kind && number === vdev.number))
      throw fault(text, 'CONFIG_CONFLICT', `there is a ${vdev.name} already; give each its own number`);
    vdevs.push(vdev);
  }
  return vdevs;
}

function fault(text: string, code: ConfigError['code'], problem: string, range?: string): ConfigError {
  return new ConfigError(code, '--vdev', problem, { value: text, ...(range === undefined ? {} : { range }) });
}

function readName(text: string, name: string): { kind: keyof Kinds; number: number } {
  const [, stem, digits] = /^(.*?)(\d*)$/s.exec(name)!;
  const kind = kindsByName.get(stem);
  if (kind === undefined) {
    const nearest = nearestName(stem, Object.keys(VDEV_KINDS));
    throw fault(text, 'CONFIG_INVALID_VALUE', `no such kind of device; the nearest is ${nearest}0`);
  }
  // more digits name no device that anybody counts, and stop being exact at some point
  if (!/^\d{1,9}$/.test(digits)) {
    throw fault(text, 'CONFIG_INVALID_VALUE', `the name ends in a number of up to 9 digits, for example ${stem}0`);
  }
  return { kind, number: Number(digits) };
}

/** One `key=value`, or `key` alone where the type takes an empty text. */
function readSetting(
  text: string,
  kind: string,
  keys: VdevKind['keys'],
  setting: string,
): [key: string, value: unknown] {
  const [, key, valueText = ''] = /^([^=]*)(?:=(.*))?$/s.exec(setting)!;
  if (!Object.hasOwn(keys, key)) {
    const names = Object.keys(keys);
    const known = names.length === 0 ? 'it takes none' : `the nearest is ${nearestName(key, names)}`;
    throw fault(text, 'CONFIG_UNKNOWN_OPTION', `${kind} has no key "${key}"; ${known}`);
  }
  const { type } = keys[key];
  const value = type.parse(valueText);
  if (value !== undefined) return [key, value];
  throw fault(text, 'CONFIG_INVALID_VALUE', `invalid ${key} "${valueText}"; valid: ${type.range}`, type.range);
}

function settled(text: string, key: string, row: VdevKey, given: readonly unknown[]): unknown {
  if (row.repeats) return given;
  if (given.length > 0) return given[0];
  if (row.required) throw fault(text, 'CONFIG_MISSING_VALUE', `needs ${key}=…: ${row.type.range}`, row.type.range);
  return row.default === undefined ? undefined : row.type.parse(row.default);
}

/** The kind of a device, from its name; a name of no known kind without its number. */
export function kindOfVdev(name: string): string {
  const stem = name.replace(/\d+$/, '');
  return kindsByName.get(stem) ?? stem;
}
