/**
 * The plain packets' way through the rings in WebAssembly: packets of one descriptor, in the memory chunk at hand. What
 * `plain.ts` does in TypeScript, faster: no bounds check, no look at an array before each access.
 *
 * A ring's parts lie in the source window (`take`) or the destination window (`fill`), together with the buffers. Every value
 * of the guest's is loaded once into a local, checked there, and used from there; so the functions cannot be led out of the chunk
 * that they are given, and WebAssembly does not let them out of the window.
 */
import { COPY_ENTRY_BYTES, copyFunction, DST, PAIR_MEMORIES, SCRATCH as SCRATCH_MEM, SRC } from '../mem/copy-module.ts';
import { assemble, type Code, type FunctionBody, I32, op } from '../mem/wasm-assembler.ts';
import { VRING_DESC, VRING_DESC_F_WRITE, VRING_USED_ELEM } from '../uapi/virtio-ring.ts';
import { MAX_SEGMENTS } from '../virtqueue/segments.ts';
import { FRONT_BYTES, SCRATCH } from './burst.ts';

const { get, set, tee } = op;
const { off: DESC } = VRING_DESC;
const COPY = 0;
const FLAGS_MASK = 0xffff;

/** Leaves the loop and the block around it. */
const leaveUnless = (...condition: Code[]): Code[] => [...condition, op.eqz, op.leaveIf(1)];
const leaveIf = (...condition: Code[]): Code[] => [...condition, op.leaveIf(1)];
const times = (local: number, log2: number): Code[] => [get(local), op.const(log2), op.shl];

/** Numbers the locals: parameters first. */
function locals<P extends string, L extends string>(params: readonly P[], others: readonly L[]): Record<P | L, number> {
  return Object.fromEntries([...params, ...others].map((name, i) => [name, i])) as Record<P | L, number>;
}

/** What both directions are told of a ring and of the chunk at hand. */
const RING_PARAMS = [
  'desc',
  'ring',
  'num',
  'mask',
  'headerLen',
  'mapLo',
  'mapHi',
  'reach',
  'base',
  'nextAvail',
] as const;
const DESC_LOCALS = ['head', 'at', 'lo', 'hi', 'len', 'off', 'b4', 'c4'] as const;
type RingLocals = Record<(typeof RING_PARAMS)[number] | (typeof DESC_LOCALS)[number], number>;

/** Loads the head in the avail ring, `ahead` (a local) entries from nextAvail. */
const loadHead = (l: RingLocals, mem: number, ahead: number): Code[] => [
  ...[get(l.ring), get(l.nextAvail), get(ahead), op.add, get(l.mask), op.and, op.const(1), op.shl, op.add],
  ...[op.load16(mem), set(l.head)],
];

/** Loads the head's descriptor, and leaves unless it is alone with `flags` and in the chunk; then `off` is its window offset. */
const loadDescriptor = (l: RingLocals, mem: number, flags: number): Code[] => [
  ...leaveUnless(get(l.head), get(l.num), op.ltU),
  ...[get(l.desc), ...times(l.head, 4), op.add, set(l.at)],
  ...leaveIf(get(l.at), op.load32(mem, DESC.flags), op.const(FLAGS_MASK), op.and, op.const(flags), op.ne),
  ...[get(l.at), op.load32(mem, DESC.addr), get(l.mapLo), op.sub, set(l.lo)],
  ...leaveIf(get(l.at), op.load32(mem, DESC.addr + 4), get(l.mapHi), op.ne),
  ...[get(l.at), op.load32(mem, DESC.len), set(l.len)],
  ...leaveIf(get(l.len), get(l.reach), op.gtU),
  ...leaveIf(get(l.lo), get(l.reach), get(l.len), op.sub, op.gtU),
  ...[get(l.base), get(l.lo), op.add, set(l.off)],
];

/** take(…ring, window, i, n, count) → the first packet that is not plain, or n. `count`: segments in use before. */
function takeFunction(): FunctionBody {
  const params = [...RING_PARAMS, 'window', 'i', 'n', 'count'] as const;
  const l = locals(params, DESC_LOCALS);
  const put = (array: number, value: Code[], at: number): Code[] => [get(at), ...value, op.store32(SCRATCH_MEM, array)];
  const payloadLen = [get(l.len), get(l.headerLen), op.sub];
  return {
    name: 'take',
    params: params.length,
    result: true,
    locals: DESC_LOCALS.map(() => I32),
    code: [
      op.block(
        op.doWhile(
          ...loadHead(l, SRC, l.i),
          ...[...times(l.i, 2), tee(l.b4), get(l.head), op.store32(SCRATCH_MEM, SCRATCH.head)],
          ...loadDescriptor(l, SRC, 0),
          ...leaveIf(get(l.len), get(l.headerLen), op.const(FRONT_BYTES), op.add, op.ltU),
          ...leaveUnless(get(l.count), op.const(MAX_SEGMENTS), op.ltU),
          ...[get(l.off), get(l.headerLen), op.add, set(l.off)],
          ...[...times(l.i, 4), get(l.off), op.load128(SRC), op.store128(SCRATCH_MEM, SCRATCH.front)],
          ...[...times(l.count, 2), set(l.c4)],
          ...put(SCRATCH.first, [get(l.count)], l.b4),
          ...put(SCRATCH.len, payloadLen, l.b4),
          ...put(SCRATCH.segWindow, [get(l.window)], l.c4),
          ...put(SCRATCH.segOff, [get(l.off)], l.c4),
          ...put(SCRATCH.segLen, payloadLen, l.c4),
          ...[get(l.count), op.const(1), op.add, set(l.count)],
          ...[get(l.i), op.const(1), op.add, tee(l.i), get(l.n), op.ltU],
        ),
      ),
      get(l.i),
    ],
  };
}

/**
 * fill(…ring, used, nextUsed, lastWord, srcWindow, i, end, filled) → the first of list[i] … list[end − 1] that is not plain, or
 * end. Those before are copied; their bytes are in scratch. `filled`: used entries filled before.
 */
function fillFunction(): FunctionBody {
  const params = [...RING_PARAMS, 'used', 'nextUsed', 'lastWord', 'srcWindow', 'i', 'end', 'filled'] as const;
  const l = locals(params, [...DESC_LOCALS, 'need', 'bytes', 'copyAt', 'e8']);
  const payloadLen = [get(l.need), get(l.headerLen), op.sub];
  const usedElem = [get(l.head), op.extend, get(l.need), op.extend, op.const64(32), op.shl64, op.or64];
  return {
    name: 'fill',
    params: params.length,
    result: true,
    locals: [...DESC_LOCALS.map(() => I32), I32, I32, I32, I32],
    code: [
      op.block(
        op.doWhile(
          // b4, c4: the packet and its segment, in bytes of their arrays
          ...[...times(l.i, 2), op.load32(SCRATCH_MEM, SCRATCH.list), op.const(2), op.shl, set(l.b4)],
          ...[get(l.b4), op.load32(SCRATCH_MEM, SCRATCH.first), tee(l.c4), op.const(1), op.add],
          ...leaveIf(get(l.b4), op.load32(SCRATCH_MEM, SCRATCH.first + 4), op.ne),
          ...[...times(l.c4, 2), set(l.c4)],
          ...leaveIf(get(l.c4), op.load32(SCRATCH_MEM, SCRATCH.segWindow), get(l.srcWindow), op.ne),
          ...loadHead(l, DST, l.filled),
          ...loadDescriptor(l, DST, VRING_DESC_F_WRITE),
          ...[get(l.b4), op.load32(SCRATCH_MEM, SCRATCH.len), get(l.headerLen), op.add, set(l.need)],
          ...leaveIf(get(l.len), get(l.need), op.ltU),
          // the header: eight zero bytes, and four that end it
          ...[get(l.off), op.const64(0), op.store64(DST)],
          ...[get(l.off), get(l.headerLen), op.add, op.const(4), op.sub, get(l.lastWord), op.store32(DST)],
          ...[
            get(l.copyAt),
            get(l.c4),
            op.load32(SCRATCH_MEM, SCRATCH.segOff),
            op.store32(SCRATCH_MEM, SCRATCH.copies),
          ],
          ...[get(l.copyAt), get(l.off), get(l.headerLen), op.add, op.store32(SCRATCH_MEM, SCRATCH.copies + 4)],
          ...[get(l.copyAt), ...payloadLen, op.store32(SCRATCH_MEM, SCRATCH.copies + 8)],
          ...[get(l.copyAt), op.const(COPY_ENTRY_BYTES), op.add, set(l.copyAt)],
          ...[get(l.nextUsed), get(l.filled), op.add, get(l.mask), op.and, op.const(3), op.shl, set(l.e8)],
          ...[get(l.used), get(l.e8), op.add, ...usedElem, op.store64(DST)],
          ...[get(l.b4), get(l.b4), op.load32(SCRATCH_MEM, SCRATCH.delivered), op.const(1), op.add],
          op.store32(SCRATCH_MEM, SCRATCH.delivered),
          ...[get(l.bytes), ...payloadLen, op.add, set(l.bytes)],
          ...[get(l.filled), op.const(1), op.add, set(l.filled)],
          ...[get(l.i), op.const(1), op.add, tee(l.i), get(l.end), op.ltU],
        ),
      ),
      ...[op.const(0), get(l.bytes), op.store32(SCRATCH_MEM, SCRATCH.bytes)],
      get(l.copyAt),
      op.if(...[op.const(SCRATCH.copies), op.const(SCRATCH.copies), get(l.copyAt), op.add, op.call(COPY)]),
      get(l.i),
    ],
  };
}

/** complete(used, mask, nextUsed, n): fills n used entries of length 0 with the burst's heads, in the source window. */
function completeFunction(): FunctionBody {
  const params = ['used', 'mask', 'nextUsed', 'n'] as const;
  const l = locals(params, ['i', 'e8']);
  return {
    name: 'complete',
    params: params.length,
    result: false,
    locals: [I32, I32],
    code: [
      op.doWhile(
        ...[get(l.nextUsed), get(l.i), op.add, get(l.mask), op.and, op.const(3), op.shl, set(l.e8)],
        ...[get(l.used), get(l.e8), op.add, ...times(l.i, 2), op.load32(SCRATCH_MEM, SCRATCH.head)],
        ...[op.extend, op.store64(SRC)],
        ...[get(l.i), op.const(1), op.add, tee(l.i), get(l.n), op.ltU],
      ),
    ],
  };
}

export interface RingExports {
  take(...args: [...ring: RingArgs, window: number, from: number, n: number, count: number]): number;
  fill(
    ...args: [
      ...ring: RingArgs,
      used: number,
      nextUsed: number,
      lastWord: number,
      srcWindow: number,
      from: number,
      end: number,
      filled: number,
    ]
  ): number;
  complete(used: number, mask: number, nextUsed: number, n: number): void;
}

/** RING_PARAMS as values: the ring's parts as window offsets, its size, and the chunk at hand. */
type RingArgs = [
  desc: number,
  ring: number,
  num: number,
  mask: number,
  headerLen: number,
  mapLo: number,
  mapHi: number,
  reach: number,
  base: number,
  nextAvail: number,
];

if (VRING_USED_ELEM.size !== 8 || VRING_DESC.size !== 16) throw new RangeError('the shifts here count on these sizes');

export const ringModule = () =>
  new WebAssembly.Module(assemble(PAIR_MEMORIES, [copyFunction(), takeFunction(), fillFunction(), completeFunction()]));
