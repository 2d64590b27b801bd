/**
 * Just enough of a WebAssembly assembler for the packet path: functions over several imported memories, with SIMD.
 * @see WebAssembly core specification, binary format (§5), multi-memory and threads proposals
 */

export const I32 = 0x7f;
export const I64 = 0x7e;
export const V128 = 0x7b;
const VOID = 0x40;

/** Unsigned LEB128. */
function uleb(n: number): number[] {
  const bytes: number[] = [];
  do {
    const more = n > 0x7f;
    bytes.push((n & 0x7f) | (more ? 0x80 : 0));
    n >>>= 7;
  } while (n > 0);
  return bytes;
}

/** Signed LEB128. */
function sleb(n: bigint): number[] {
  const bytes: number[] = [];
  for (;;) {
    const byte = Number(n & 0x7fn);
    n >>= 7n;
    const last = (n === 0n && (byte & 0x40) === 0) || (n === -1n && (byte & 0x40) !== 0);
    bytes.push(last ? byte : byte | 0x80);
    if (last) return bytes;
  }
}

export type Code = readonly number[];

/** A load or store: alignment 1 byte, in memory number `mem`, at a constant offset from the address on the stack. */
const memarg = (mem: number, offset: number): Code => [0x40, ...uleb(mem), ...uleb(offset)];

export const op = {
  get: (local: number): Code => [0x20, ...uleb(local)],
  set: (local: number): Code => [0x21, ...uleb(local)],
  tee: (local: number): Code => [0x22, ...uleb(local)],
  const: (n: number): Code => [0x41, ...sleb(BigInt(n | 0))],
  const64: (n: number): Code => [0x42, ...sleb(BigInt(n))],
  eqz: [0x45] as Code,
  eq: [0x46] as Code,
  ne: [0x47] as Code,
  ltS: [0x48] as Code,
  ltU: [0x49] as Code,
  gtU: [0x4b] as Code,
  geU: [0x4f] as Code,
  clz: [0x67] as Code,
  add: [0x6a] as Code,
  sub: [0x6b] as Code,
  mul: [0x6c] as Code,
  and: [0x71] as Code,
  or: [0x72] as Code,
  xor: [0x73] as Code,
  /** Takes a, b and an i32: a if that is not zero, else b. */
  select: [0x1b] as Code,
  shl: [0x74] as Code,
  gtU64: [0x56] as Code,
  sub64: [0x7d] as Code,
  and64: [0x83] as Code,
  or64: [0x84] as Code,
  shl64: [0x86] as Code,
  shrU64: [0x88] as Code,
  /** i32 to i64, unsigned */
  extend: [0xad] as Code,
  /** the lower half of an i64 */
  wrap: [0xa7] as Code,
  load8: (mem: number, offset = 0): Code => [0x2d, ...memarg(mem, offset)],
  load16: (mem: number, offset = 0): Code => [0x2f, ...memarg(mem, offset)],
  load32: (mem: number, offset = 0): Code => [0x28, ...memarg(mem, offset)],
  load64: (mem: number, offset = 0): Code => [0x29, ...memarg(mem, offset)],
  load128: (mem: number, offset = 0): Code => [0xfd, 0x00, ...memarg(mem, offset)],
  or128: [0xfd, 0x50] as Code,
  xor128: [0xfd, 0x51] as Code,
  /** Takes a v128: word number `lane`. */
  lane32: (lane: number): Code => [0xfd, 0x1b, lane],
  /** Orders what follows behind it: sequentially consistent. */
  atomicLoad64: (mem: number, offset = 0): Code => [0xfe, 0x11, 0x43, ...uleb(mem), ...uleb(offset)],
  store8: (mem: number, offset = 0): Code => [0x3a, ...memarg(mem, offset)],
  store16: (mem: number, offset = 0): Code => [0x3b, ...memarg(mem, offset)],
  store32: (mem: number, offset = 0): Code => [0x36, ...memarg(mem, offset)],
  store64: (mem: number, offset = 0): Code => [0x37, ...memarg(mem, offset)],
  store128: (mem: number, offset = 0): Code => [0xfd, 0x0b, ...memarg(mem, offset)],
  /** Calls the module's function number `index`. */
  call: (index: number): Code => [0x10, ...uleb(index)],
  /** Takes an i32: if it is not zero, leaves the `depth`-th block or loop around. */
  leaveIf: (depth: number): Code => [0x0d, ...uleb(depth)],
  block: (...body: Code[]): Code => [0x02, VOID, ...body.flat(), 0x0b],
  /** Runs `body` while it ends with a non-zero i32 on the stack. */
  doWhile: (...body: Code[]): Code => [0x03, VOID, ...body.flat(), 0x0d, 0x00, 0x0b],
  /** Takes an i32: `body` if it is not zero. */
  if: (...body: Code[]): Code => [0x04, VOID, ...body.flat(), 0x0b],
  ifElse: (then: Code[], otherwise: Code[]): Code => [0x04, VOID, ...then.flat(), 0x05, ...otherwise.flat(), 0x0b],
};

export interface MemoryImport {
  readonly name: string;
  /** pages of 64 KiB that it has at least, and at most */
  readonly pages: number;
  /** Default: `pages`. */
  readonly maxPages?: number;
  readonly shared: boolean;
}

export interface FunctionBody {
  readonly name: string;
  /** the number of i32 parameters, which are the first locals */
  readonly params: number;
  /** true: the code leaves an i32 on the stack, the result */
  readonly result: boolean;
  /** further locals, by type */
  readonly locals: readonly number[];
  readonly code: readonly Code[];
}

const vec = (items: readonly Code[]): number[] => [...uleb(items.length), ...items.flat()];
const name = (text: string): number[] => {
  const bytes = [...Buffer.from(text)];
  return [...uleb(bytes.length), ...bytes];
};
const section = (id: number, body: Code): number[] => [id, ...uleb(body.length), ...body];

/** The module's bytes. Memories are imported from module "m", functions are exported under their names. */
export function assemble(
  memories: readonly MemoryImport[],
  functions: readonly FunctionBody[],
): Uint8Array<ArrayBuffer> {
  const types = functions.map((f) => [0x60, ...vec(Array(f.params).fill([I32])), ...vec(f.result ? [[I32]] : [])]);
  const imports = memories.map((m) => [
    ...name('m'),
    ...name(m.name),
    0x02,
    m.shared ? 0x03 : 0x01,
    ...uleb(m.pages),
    ...uleb(m.maxPages ?? m.pages),
  ]);
  const bodies = functions.map((f) => {
    const body = [...vec(f.locals.map((type) => [1, type])), ...f.code.flat(), 0x0b];
    return [...uleb(body.length), ...body];
  });
  return new Uint8Array([
    ...[0x00, 0x61, 0x73, 0x6d, 0x01, 0x00, 0x00, 0x00],
    ...section(1, vec(types)),
    ...section(2, vec(imports)),
    ...section(3, vec(functions.map((_, i) => uleb(i)))),
    ...section(7, vec(functions.map((f, i) => [...name(f.name), 0x00, ...uleb(i)]))),
    ...section(10, vec(bodies)),
  ]);
}
