/**
 * The argument of `--vdev`, `net_<kind><n>,key=value,…`: a port's name and what it is told.
 */
import { ConfigError } from '../errors.ts';

/** `net_virtio_user0,path=/tmp/s` taken apart. */
export interface Vdev {
  /** as given: `net_virtio_user0` */
  readonly name: string;
  /** `net_virtio_user` */
  readonly kind: string;
  readonly args: ReadonlyMap<string, string>;
}

/** Throws ConfigError for what is no such argument. */
export function parseVdev(text: string): Vdev {
  const [name, ...parts] = text.split(',');
  const match = /^(net_[a-z_]*[a-z])(\d+)$/.exec(name);
  if (match === null) throw vdevFault(text, 'a port is named net_KIND followed by a number, as in net_virtio_user0');
  const args = new Map<string, string>();
  for (const part of parts) {
    const at = part.indexOf('=');
    if (at <= 0) throw vdevFault(text, `"${part}" is not KEY=VALUE`);
    const key = part.slice(0, at);
    if (args.has(key)) throw vdevFault(text, `${key} is given twice`);
    args.set(key, part.slice(at + 1));
  }
  return { name, kind: match[1], args };
}

export const vdevFault = (value: string, problem: string) =>
  new ConfigError('CONFIG_INVALID_VALUE', '--vdev', problem, { value });

/** Reads the keys of one kind of port; each that is not known is a fault. */
export class VdevArgs {
  readonly #vdev: Vdev;
  readonly #left: Set<string>;

  constructor(vdev: Vdev) {
    this.#vdev = vdev;
    this.#left = new Set(vdev.args.keys());
  }

  text(key: string): string | undefined {
    this.#left.delete(key);
    return this.#vdev.args.get(key);
  }

  /** A value that must be there. */
  needed(key: string, what: string): string {
    const value = this.text(key);
    if (value === undefined || value === '') throw this.fault(`${key}= is missing: ${what}`);
    return value;
  }

  flag(key: string, otherwise: boolean): boolean {
    const value = this.text(key);
    if (value === undefined) return otherwise;
    if (value !== '0' && value !== '1') throw this.fault(`${key}=${value}: must be 0 or 1`);
    return value === '1';
  }

  integer(key: string, otherwise: number, min: number, max: number): number {
    const value = this.text(key);
    if (value === undefined) return otherwise;
    const n = /^\d+$/.test(value) ? Number(value) : Number.NaN;
    if (!(n >= min && n <= max)) throw this.fault(`${key}=${value}: must be a number from ${min} to ${max}`);
    return n;
  }

  fault(problem: string): ConfigError {
    return vdevFault(this.#vdev.name, problem);
  }

  /** Throws ConfigError if there are keys that nobody has asked for. */
  end(): void {
    const [unknown] = this.#left;
    if (unknown !== undefined) throw this.fault(`${unknown}= means nothing to a ${this.#vdev.kind} port`);
  }
}
