/**
 * bpf(2): makes maps, loads programs and attaches them to interfaces. All of it lives as long as its descriptors, which close on
 * exec: what a process leaves behind when it is killed is nothing.
 * @see bpf(2)
 */
import { closeSync, readFileSync } from 'node:fs';
import { SwitchError, SysError } from '../errors.ts';
import {
  BPF_ATTR_LINK_CREATE,
  BPF_ATTR_MAP_CREATE,
  BPF_ATTR_MAP_ELEM,
  BPF_ATTR_PROG_LOAD,
  BPF_INSN,
  BPF_LINK_CREATE,
  BPF_MAP_CREATE,
  BPF_MAP_DELETE_ELEM,
  BPF_MAP_LOOKUP_ELEM,
  BPF_MAP_TYPE_PERCPU_ARRAY,
  BPF_MAP_UPDATE_ELEM,
  BPF_OBJ_NAME_LEN,
  BPF_PROG_LOAD,
  BPF_XDP,
} from '../uapi/bpf.ts';
import type { Layout } from '../uapi/layout.ts';
import { addressOf, check, errno, libc } from './libc.ts';

const SYS_BPF = process.arch === 'x64' ? 321 : 280;
const EPERM = 1;
const ENOENT = 2;
const ENOSYS = 38;
/** What to do about an errno of bpf(2). */
const ADVICE: Readonly<Record<number, string>> = {
  [EPERM]: '(it takes root, or CAP_BPF and CAP_NET_ADMIN; before Linux 5.8 CAP_SYS_ADMIN)',
  [ENOSYS]: '(it takes a kernel with CONFIG_BPF_SYSCALL, and a seccomp profile that allows it)',
};
/** What the verifier says about a program is a few kilobytes. */
const LOG_BYTES = 65536;
/** Programs that use the kernel's GPL-only functions say so; ours is what the package's licence is compatible with. */
const LICENSE = 'Dual BSD/GPL\0';

const c = { syscall: libc.func('syscall', 'int64_t', ['int64_t', 'int', 'void *', 'uint']) };

/** The error of a command that has just failed. */
const failure = (command: string) => {
  const advice = ADVICE[errno()];
  return new SysError('bpf', errno(), advice === undefined ? command : `${command} ${advice}`);
};

/** One argument of bpf(2): as many bytes of union bpf_attr as the command has, and what they point to. */
class Attr<F extends string> {
  readonly bytes: Uint8Array;
  readonly #view: DataView;
  readonly #off: Layout<F>['off'];
  /** what is pointed to */
  readonly kept: Uint8Array[] = [];

  constructor({ size, off }: Layout<F>) {
    this.bytes = new Uint8Array(size);
    this.#view = new DataView(this.bytes.buffer);
    this.#off = off;
  }

  u32(field: F, value: number): this {
    this.#view.setUint32(this.#off[field], value, true);
    return this;
  }

  pointer(field: F, to: Uint8Array): this {
    this.kept.push(to);
    this.#view.setBigUint64(this.#off[field], addressOf(to), true);
    return this;
  }

  /** A name as the kernel takes it: letters, digits, `_` and `.`, 15 at most. */
  name(field: F, name: string): this {
    this.bytes.set(Buffer.from(name.replace(/[^\w.]/g, '_').slice(0, BPF_OBJ_NAME_LEN - 1)), this.#off[field]);
    return this;
  }
}

/** What the call at hand points to: nobody else may know it any more. */
let pointedTo: readonly Uint8Array[] = [];

function bpf(command: number, { bytes, kept }: { readonly bytes: Uint8Array; readonly kept: readonly Uint8Array[] }) {
  pointedTo = kept;
  const status = Number(c.syscall(SYS_BPF, command, bytes, bytes.length));
  if (pointedTo.length > 0) pointedTo = [];
  return status;
}

/** How many CPUs the kernel may ever have: a map by CPU has a value for each. */
function possibleCpus(): number {
  const list = readFileSync('/sys/devices/system/cpu/possible', 'utf8').trim();
  return 1 + Math.max(...list.split(/[,-]/).map(Number));
}

/** A map; keys and values are bytes, of the sizes it was made with. */
export class BpfMap {
  /** stays this object's */
  readonly fd: number;
  readonly #keySize: number;
  readonly #valueSize: number;
  /** bytes that a lookup gives */
  readonly #lookupSize: number;

  /** @param type BPF_MAP_TYPE_… Throws SysError: EPERM, ENOSYS with what to do. */
  constructor(type: number, keySize: number, valueSize: number, maxEntries: number, name: string) {
    this.#keySize = keySize;
    this.#valueSize = valueSize;
    this.#lookupSize = type === BPF_MAP_TYPE_PERCPU_ARRAY ? 8 * Math.ceil(valueSize / 8) * possibleCpus() : valueSize;
    const attr = new Attr(BPF_ATTR_MAP_CREATE)
      .u32('map_type', type)
      .u32('key_size', keySize)
      .u32('value_size', valueSize)
      .u32('max_entries', maxEntries)
      .name('map_name', name);
    const fd = bpf(BPF_MAP_CREATE, attr);
    if (fd < 0) throw failure('MAP_CREATE');
    this.fd = fd;
  }

  #elem(key: Uint8Array): Attr<keyof (typeof BPF_ATTR_MAP_ELEM)['off']> {
    if (key.length !== this.#keySize) throw new RangeError(`a key of ${key.length} bytes for ${this.#keySize}`);
    return new Attr(BPF_ATTR_MAP_ELEM).u32('map_fd', this.fd).pointer('key', key);
  }

  /** Sets a key's value, whether it has one or not. Throws SysError (E2BIG: the map is full). */
  update(key: Uint8Array, value: Uint8Array): void {
    if (value.length !== this.#valueSize) throw new RangeError(`${value.length} bytes for ${this.#valueSize}`);
    check(bpf(BPF_MAP_UPDATE_ELEM, this.#elem(key).pointer('value', value)), 'bpf', 'MAP_UPDATE_ELEM');
  }

  /** @returns false if there was no such key */
  delete(key: Uint8Array): boolean {
    const status = bpf(BPF_MAP_DELETE_ELEM, this.#elem(key));
    if (status < 0 && errno() === ENOENT) return false;
    check(status, 'bpf', 'MAP_DELETE_ELEM');
    return true;
  }

  /** A key's value, or undefined. Of a map by CPU the values of all of them, each at a multiple of 8 bytes. */
  lookup(key: Uint8Array): Uint8Array | undefined {
    const value = new Uint8Array(this.#lookupSize);
    const status = bpf(BPF_MAP_LOOKUP_ELEM, this.#elem(key).pointer('value', value));
    if (status < 0 && errno() === ENOENT) return undefined;
    check(status, 'bpf', 'MAP_LOOKUP_ELEM');
    return value;
  }

  close(): void {
    closeSync(this.fd);
  }
}

/** A map's key that is a number. */
export const mapIndex = (n: number) => new Uint8Array(Uint32Array.of(n).buffer);

/**
 * Loads a program. The caller owns the descriptor.
 * @param type BPF_PROG_TYPE_…
 * @param program instructions
 * @param flags prog_flags
 * @throws SwitchError (BPF_REJECTED, with what the verifier says), SysError: EPERM, ENOSYS with what to do
 */
export function loadProgram(type: number, program: Uint8Array, name: string, flags = 0): number {
  const log = new Uint8Array(LOG_BYTES);
  const license = new Uint8Array(Buffer.from(LICENSE));
  const attempt = (logLevel: number) => {
    const attr = new Attr(BPF_ATTR_PROG_LOAD)
      .u32('prog_type', type)
      .u32('insn_cnt', program.length / BPF_INSN.size)
      .pointer('insns', program)
      .pointer('license', license)
      .u32('prog_flags', flags)
      .name('prog_name', name);
    if (logLevel > 0) attr.u32('log_level', logLevel).u32('log_size', log.length).pointer('log_buf', log);
    return bpf(BPF_PROG_LOAD, attr);
  };
  let fd = attempt(0);
  if (fd >= 0) return fd;
  const why = failure('PROG_LOAD');
  // once more, to hear what is wrong with it
  fd = attempt(1);
  if (fd >= 0) return fd;
  const end = log.indexOf(0);
  const text = Buffer.from(log.subarray(0, end < 0 ? log.length : end))
    .toString()
    .trim();
  if (text === '') throw why;
  throw new SwitchError('BPF_REJECTED', `the kernel rejects the program ${name} (${why.code}):\n${text}`);
}

/**
 * Attaches an XDP program to an interface, for as long as the descriptor that is returned is open in some process.
 * @param flags XDP_FLAGS_SKB_MODE or XDP_FLAGS_DRV_MODE
 * @throws SysError: EBUSY or EEXIST: there is a program already; EOPNOTSUPP: its driver has no XDP; EPERM
 */
export function attachXdp(program: number, ifindex: number, flags: number): number {
  const attr = new Attr(BPF_ATTR_LINK_CREATE)
    .u32('prog_fd', program)
    .u32('target_ifindex', ifindex)
    .u32('attach_type', BPF_XDP)
    .u32('flags', flags);
  const fd = bpf(BPF_LINK_CREATE, attr);
  if (fd < 0) throw failure('LINK_CREATE');
  return fd;
}
