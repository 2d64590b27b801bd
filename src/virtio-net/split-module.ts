/**
 * The plain packets' way through split rings in WebAssembly: packets of one descriptor, in the memory chunk at hand. What
 * `plain.ts` does in TypeScript, faster: no bounds check, no look at an array before each access.
 */
import { DST, SCRATCH as SCRATCH_MEM, SRC } from '../mem/copy-module.ts';
import { type Code, type FunctionBody, I32, I64, op, V128 } from '../mem/wasm-assembler.ts';
import { VRING_DESC, VRING_DESC_F_WRITE, VRING_USED_ELEM } from '../uapi/virtio-ring.ts';
import { SCRATCH } from './burst.ts';
import {
  begin,
  CHUNK_PARAMS,
  type ChunkArgs,
  copyAll,
  DESC_LOCALS,
  endTake,
  FILL_LOCALS,
  FILL_PARAMS,
  type FillArgs,
  fillPacket,
  type Kind,
  leaveIf,
  leaveUnless,
  loadBuffer,
  locals,
  nextPacket,
  TAKE_WIDE,
  takePacket,
  tallyRun,
  times,
  WIDE_LOCALS,
} from './module-parts.ts';

const { get, set, tee } = op;
const FLAGS_MASK = 0xffff;

/** What both directions are told of a ring: its parts as window offsets, its size, its position. */
const RING_PARAMS = ['desc', 'ring', 'num', 'mask', 'next'] as const;
type RingArgs = [desc: number, ring: number, num: number, mask: number, next: number];
type RingLocals = Record<(typeof RING_PARAMS)[number] | 'head' | 'at' | 'len' | 'tail', number>;

/** Loads the head in the avail ring, `ahead` (a local) entries from the position. */
const loadHead = (l: RingLocals, mem: number, ahead: number): Code[] => [
  ...[get(l.ring), get(l.next), get(ahead), op.add, get(l.mask), op.and, op.const(1), op.shl, op.add],
  ...[op.load16(mem), set(l.head)],
];

/** Finds the head's descriptor, and leaves unless it is alone with `flags`. */
const findDescriptor = (l: RingLocals, mem: number, flags: number): Code[] => [
  ...leaveUnless(get(l.head), get(l.num), op.ltU),
  ...[get(l.desc), ...times(l.head, 4), op.add, set(l.at)],
  ...[get(l.at), op.load64(mem, VRING_DESC.off.len), tee(l.tail), op.const64(32), op.shrU64, op.wrap],
  ...leaveIf(op.const(FLAGS_MASK), op.and, op.const(flags), op.ne),
  ...[get(l.tail), op.wrap, set(l.len)],
];

/** takeSplit(…ring, …chunk, window, i, n, segment) → the first packet that is not plain, or n. `segment`: segments in use before. */
function takeFunction(): FunctionBody {
  const params = [...RING_PARAMS, ...CHUNK_PARAMS, 'window', 'i', 'n', 'segment'] as const;
  const others = [...DESC_LOCALS, 'head'] as const;
  const l = locals(params, [...others, ...WIDE_LOCALS, ...TAKE_WIDE]);
  return {
    name: 'takeSplit',
    params: params.length,
    result: true,
    locals: [...others.map(() => I32), ...WIDE_LOCALS.map(() => I64), ...TAKE_WIDE.map(() => V128)],
    code: [
      ...begin(l),
      op.block(
        op.doWhile(
          ...loadHead(l, SRC, l.i),
          ...findDescriptor(l, SRC, 0),
          ...loadBuffer(l, SRC),
          ...takePacket(l),
          ...[get(l.b4), get(l.head), op.store32(SCRATCH_MEM, SCRATCH.id)],
          ...[get(l.i), op.const(1), op.add, tee(l.i), get(l.n), op.ltU],
        ),
      ),
      ...endTake(l),
      get(l.i),
    ],
  };
}

/** The name of `fill` for packets of a kind. */
const FILL = { any: 'fillSplit', uniform: 'fillSplitUniform' };

/**
 * fillSplit(…ring, …chunk, used, …fill) → the first of order[i] … order[end − 1] that is not plain, or end. Those before are
 * copied and counted. `filled`: used entries filled before.
 */
function fillFunction(kind: Kind): FunctionBody {
  const params = [...RING_PARAMS, ...CHUNK_PARAMS, 'used', ...FILL_PARAMS] as const;
  const others = [...DESC_LOCALS, 'head', ...FILL_LOCALS] as const;
  const l = locals(params, [...others, ...WIDE_LOCALS]);
  const usedElem = [get(l.head), op.extend, get(l.need), op.extend, op.const64(32), op.shl64, op.or64];
  return {
    name: FILL[kind],
    params: params.length,
    result: true,
    locals: [...others.map(() => I32), ...WIDE_LOCALS.map(() => I64)],
    code: [
      ...begin(l),
      op.block(
        op.doWhile(
          ...nextPacket(l, kind),
          ...loadHead(l, DST, l.filled),
          ...findDescriptor(l, DST, VRING_DESC_F_WRITE),
          ...loadBuffer(l, DST),
          ...leaveIf(get(l.len), get(l.need), op.ltU),
          ...[get(l.next), get(l.filled), op.add, get(l.mask), op.and, op.const(3), op.shl, get(l.used), op.add],
          ...[...usedElem, op.store64(DST)],
          ...fillPacket(l, kind),
        ),
      ),
      ...tallyRun(l),
      ...copyAll(l),
      get(l.i),
    ],
  };
}

/** completeSplit(used, mask, next, n): fills n used entries of length 0 with the burst's heads, in the source window. */
function completeFunction(): FunctionBody {
  const params = ['used', 'mask', 'next', 'n'] as const;
  const l = locals(params, ['i', 'e8']);
  return {
    name: 'completeSplit',
    params: params.length,
    result: false,
    locals: [I32, I32],
    code: [
      op.doWhile(
        ...[get(l.next), get(l.i), op.add, get(l.mask), op.and, op.const(3), op.shl, set(l.e8)],
        ...[get(l.used), get(l.e8), op.add, ...times(l.i, 2), op.load32(SCRATCH_MEM, SCRATCH.id)],
        ...[op.extend, op.store64(SRC)],
        ...[get(l.i), op.const(1), op.add, tee(l.i), get(l.n), op.ltU],
      ),
    ],
  };
}

type FillSplit = (...args: [...RingArgs, ...ChunkArgs, used: number, ...FillArgs]) => number;

export interface SplitExports {
  takeSplit(...args: [...RingArgs, ...ChunkArgs, window: number, from: number, n: number, segment: number]): number;
  fillSplit: FillSplit;
  fillSplitUniform: FillSplit;
  completeSplit(used: number, mask: number, next: number, n: number): void;
}

if (VRING_USED_ELEM.size !== 8 || VRING_DESC.size !== 16) throw new RangeError('the shifts here count on these sizes');

export const splitFunctions = (): FunctionBody[] => [
  takeFunction(),
  fillFunction('any'),
  fillFunction('uniform'),
  completeFunction(),
];
