/**
 * The plain packets' way through packed rings in WebAssembly: packets of one descriptor, in the memory chunk at hand. A slot's
 * flags are loaded first, in order before the rest of it; all of a used element but its address is one store.
 */
import { DST, SCRATCH as SCRATCH_MEM, SRC } from '../mem/copy-module.ts';
import { type Code, type FunctionBody, I32, I64, op, V128 } from '../mem/wasm-assembler.ts';
import {
  VRING_DESC_F_INDIRECT,
  VRING_DESC_F_NEXT,
  VRING_DESC_F_WRITE,
  VRING_PACKED_DESC,
} from '../uapi/virtio-ring.ts';
import { AVAIL, AVAIL_USED } from '../virtqueue/packed-ring.ts';
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
const { off: DESC } = VRING_PACKED_DESC;
const LAYOUT_FLAGS = VRING_DESC_F_NEXT | VRING_DESC_F_WRITE | VRING_DESC_F_INDIRECT;

/**
 * What both directions are told of a ring: where it begins, its size, the slot to begin with, and the flags AVAIL and USED of an
 * available descriptor there: both change when the ring wraps.
 */
const RING_PARAMS = ['desc', 'num', 'slot', 'avail'] as const;
type RingArgs = [desc: number, num: number, slot: number, avail: number];
type RingLocals = Record<(typeof RING_PARAMS)[number] | 'at', number>;
/** A descriptor's second half: length, id, flags. */
const ID_MASK = 0xffff_0000_0000;
const TAIL_ID = [op.const64(32), op.shrU64, op.wrap, op.const(0xffff), op.and];

/** Finds the slot's descriptor, and leaves unless it is available and alone with `flags`. */
const findDescriptor = (l: RingLocals & Record<'len' | 'tail', number>, mem: number, flags: number): Code[] => [
  ...[get(l.desc), ...times(l.slot, 4), op.add, tee(l.at), op.atomicLoad64(mem, DESC.len), tee(l.tail)],
  ...[op.const64(48), op.shrU64, op.wrap],
  ...leaveIf(op.const(AVAIL_USED | LAYOUT_FLAGS), op.and, get(l.avail), op.const(flags), op.or, op.ne),
  ...[get(l.tail), op.wrap, set(l.len)],
];

const nextSlot = (l: RingLocals): Code[] => [
  ...[get(l.slot), op.const(1), op.add, tee(l.slot), get(l.num), op.eq],
  op.if(...[op.const(0), set(l.slot), get(l.avail), op.const(AVAIL_USED), op.xor, set(l.avail)]),
];

/**
 * Stores a used element into the descriptor at `at` of `mem`: `element` (code of an i64) is its length and id. With `first` (code of an i32)
 * not zero it keeps an available descriptor's flags: the driver must not see it yet. A used descriptor's AVAIL is its lap's wrap
 * counter, as an available one's, and its USED the same.
 */
const putUsed = (l: RingLocals, mem: number, element: Code[], first: Code[], write: number): Code[] => [
  get(l.at),
  ...element,
  ...[get(l.avail), op.const(AVAIL_USED), op.const(0), get(l.avail), op.const(AVAIL), op.and, op.select],
  ...[...first, op.select, op.const(write), op.or, op.extend, op.const64(48), op.shl64, op.or64],
  op.store64(mem, DESC.len),
];

/** takePacked(…ring, …chunk, window, i, n, segment) → the first packet that is not plain or not there, or n. */
function takeFunction(): FunctionBody {
  const params = [...RING_PARAMS, ...CHUNK_PARAMS, 'window', 'i', 'n', 'segment'] as const;
  const l = locals(params, [...DESC_LOCALS, ...WIDE_LOCALS, ...TAKE_WIDE]);
  return {
    name: 'takePacked',
    params: params.length,
    result: true,
    locals: [...DESC_LOCALS.map(() => I32), ...WIDE_LOCALS.map(() => I64), ...TAKE_WIDE.map(() => V128)],
    code: [
      ...begin(l),
      op.block(
        op.doWhile(
          ...findDescriptor(l, SRC, 0),
          ...loadBuffer(l, SRC),
          ...takePacket(l),
          ...[get(l.b4), get(l.tail), ...TAIL_ID, op.store32(SCRATCH_MEM, SCRATCH.id)],
          ...[get(l.b4), op.const(1), op.store32(SCRATCH_MEM, SCRATCH.slots)],
          ...nextSlot(l),
          ...[get(l.i), op.const(1), op.add, tee(l.i), get(l.n), op.ltU],
        ),
      ),
      ...endTake(l),
      get(l.i),
    ],
  };
}

/** The name of `fill` for packets of a kind. */
const FILL = { any: 'fillPacked', uniform: 'fillPackedUniform' };

/**
 * fillPacked(…ring, …chunk, …fill) → the first of order[i] … order[end − 1] that is not plain or finds no buffer, or end. Those before
 * are copied and counted. `filled`: slots filled before; slot 0 of them all is not shown to the driver. Used elements are stored
 * last and at once: a driver that looks for them while they are made would take the line away between two of them.
 */
function fillFunction(kind: Kind): FunctionBody {
  const params = [...RING_PARAMS, ...CHUNK_PARAMS, ...FILL_PARAMS] as const;
  const others = [...DESC_LOCALS, ...FILL_LOCALS, 'firstSlot', 'firstAvail', 'before', 'at8', 'end8'] as const;
  const l = locals(params, [...others, ...WIDE_LOCALS]);
  const putAllUsed = [
    ...[get(l.firstSlot), set(l.slot), get(l.firstAvail), set(l.avail)],
    op.doWhile(
      ...[get(l.desc), ...times(l.slot, 4), op.add, set(l.at)],
      ...putUsed(
        l,
        DST,
        [get(l.at8), op.load64(SCRATCH_MEM, SCRATCH.used)],
        [get(l.before), get(l.at8), op.or, op.eqz],
        VRING_DESC_F_WRITE,
      ),
      ...nextSlot(l),
      ...[get(l.at8), op.const(8), op.add, tee(l.at8), get(l.end8), op.ltU],
    ),
  ];
  return {
    name: FILL[kind],
    params: params.length,
    result: true,
    locals: [...others.map(() => I32), ...WIDE_LOCALS.map(() => I64)],
    code: [
      ...begin(l),
      ...[get(l.slot), set(l.firstSlot), get(l.avail), set(l.firstAvail), get(l.filled), set(l.before)],
      op.block(
        op.doWhile(
          ...nextPacket(l, kind),
          ...findDescriptor(l, DST, VRING_DESC_F_WRITE),
          ...loadBuffer(l, DST),
          ...leaveIf(get(l.len), get(l.need), op.ltU),
          ...[get(l.end8), get(l.tail), op.const64(ID_MASK), op.and64, get(l.need), op.extend, op.or64],
          ...[op.store64(SCRATCH_MEM, SCRATCH.used), get(l.end8), op.const(8), op.add, set(l.end8)],
          ...nextSlot(l),
          ...fillPacket(l, kind),
        ),
      ),
      ...tallyRun(l),
      ...copyAll(l, ...putAllUsed),
      get(l.i),
    ],
  };
}

/**
 * completePacked(desc, num, slot, avail, i, n): fills used elements of length 0 in the source window, one for each packet of the burst
 * from number i on, at least one. The first one stands at the position and is not shown to the driver.
 */
function completeFunction(): FunctionBody {
  const params = [...RING_PARAMS, 'i', 'n'] as const;
  const l = locals(params, ['at', 'b4', 'first']);
  const id = [get(l.b4), op.load32(SCRATCH_MEM, SCRATCH.id), op.extend, op.const64(32), op.shl64];
  return {
    name: 'completePacked',
    params: params.length,
    result: false,
    locals: [I32, I32, I32],
    code: [
      ...[get(l.i), set(l.first)],
      op.doWhile(
        ...[get(l.desc), ...times(l.slot, 4), op.add, set(l.at)],
        ...[...times(l.i, 2), set(l.b4)],
        ...putUsed(l, SRC, id, [get(l.i), get(l.first), op.eq], 0),
        // A chain may have taken several slots, at most a lap.
        ...[get(l.slot), get(l.b4), op.load32(SCRATCH_MEM, SCRATCH.slots), op.add, tee(l.slot), get(l.num), op.geU],
        op.if(
          ...[get(l.slot), get(l.num), op.sub, set(l.slot)],
          ...[get(l.avail), op.const(AVAIL_USED), op.xor, set(l.avail)],
        ),
        ...[get(l.i), op.const(1), op.add, tee(l.i), get(l.n), op.ltU],
      ),
    ],
  };
}

type FillPacked = (...args: [...RingArgs, ...ChunkArgs, ...FillArgs]) => number;

export interface PackedExports {
  takePacked(...args: [...RingArgs, ...ChunkArgs, window: number, from: number, n: number, segment: number]): number;
  fillPacked: FillPacked;
  fillPackedUniform: FillPacked;
  completePacked(...args: [...RingArgs, from: number, n: number]): void;
}

if (VRING_PACKED_DESC.size !== 16 || DESC.id !== DESC.len + 4)
  throw new RangeError('the stores here count on this layout');

export const packedFunctions = (): FunctionBody[] => [
  takeFunction(),
  fillFunction('any'),
  fillFunction('uniform'),
  completeFunction(),
];
