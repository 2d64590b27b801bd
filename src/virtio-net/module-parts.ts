/**
 * What the WebAssembly of both ring formats is made of.
 *
 * A ring's parts lie in the source window (`take`) or the destination window (`fill`), together with the buffers. Every value
 * of the guest's is loaded once into a local, checked there, and used from there; so the functions cannot be led out of the chunk
 * that they are given, and WebAssembly does not let them out of the window.
 */
import { COPY_ENTRY_BYTES, DST, SCRATCH as SCRATCH_MEM, SRC } from '../mem/copy-module.ts';
import { type Code, op } from '../mem/wasm-assembler.ts';
import { VRING_DESC } from '../uapi/virtio-ring.ts';
import { MAX_SEGMENTS } from '../virtqueue/segments.ts';
import { FRONT_BYTES, SCRATCH, SPREAD_LONGEST, TALLY_BROADCAST, TALLY_BYTES, TALLY_GROUP } from './burst.ts';

const { get, set, tee } = op;
/** Address and length lie alike in the descriptors of both formats. */
const { off: DESC } = VRING_DESC;

/** The module's first function is the copy stage's. */
export const COPY = 0;

/** Leaves the loop and the block around it. */
export const leaveUnless = (...condition: Code[]): Code[] => [...condition, op.eqz, op.leaveIf(1)];
export const leaveIf = (...condition: Code[]): Code[] => [...condition, op.leaveIf(1)];
export const times = (local: number, log2: number): Code[] => [get(local), op.const(log2), op.shl];

/** Numbers the locals: parameters first. Throws for a name that is there twice. */
export function locals<P extends string, L extends string>(
  params: readonly P[],
  others: readonly L[],
): Record<P | L, number> {
  const names = [...params, ...others];
  if (new Set(names).size < names.length) throw new RangeError(`two locals of one name among ${names.join(', ')}`);
  return Object.fromEntries(names.map((name, i) => [name, i])) as Record<P | L, number>;
}

/** What every function is told of the chunk at hand, and of the device header. */
export const CHUNK_PARAMS = ['headerLen', 'mapLo', 'mapHi', 'reach', 'base'] as const;
export type ChunkArgs = [headerLen: number, mapLo: number, mapHi: number, reach: number, base: number];
export const DESC_LOCALS = ['at', 'len', 'off', 'b4', 'c4', 'runLen', 'run', 'bin', 'longest'] as const;
/** i64 locals, behind all i32 ones: the chunk's first guest address, a buffer's distance from it, and a descriptor's second half. */
export const WIDE_LOCALS = ['map', 'distance', 'tail'] as const;
type L = Record<(typeof CHUNK_PARAMS)[number] | (typeof DESC_LOCALS)[number] | (typeof WIDE_LOCALS)[number], number>;

/** What every function begins with. */
export const begin = (l: L): Code[] => [
  ...[get(l.mapHi), op.extend, op.const64(32), op.shl64, get(l.mapLo), op.extend, op.or64, set(l.map)],
];

/** Loads the address of the descriptor at `at`, and leaves unless the chunk holds the `len` bytes there; then `off` is its window offset. */
export const loadBuffer = (l: L, mem: number): Code[] => [
  ...leaveIf(get(l.len), get(l.reach), op.gtU),
  ...[get(l.at), op.load64(mem, DESC.addr), get(l.map), op.sub64, tee(l.distance)],
  ...leaveIf(get(l.reach), get(l.len), op.sub, op.extend, op.gtU64),
  ...[get(l.base), get(l.distance), op.wrap, op.add, set(l.off)],
];

/** Adds to one word of the tally. */
const add = (word: number, n: Code[]): Code[] => [
  op.const(0),
  ...[op.const(0), op.load32(SCRATCH_MEM, SCRATCH.tally + 4 * word), ...n, op.add],
  op.store32(SCRATCH_MEM, SCRATCH.tally + 4 * word),
];

/** Four times the class of size of `len` (a local): below 64, 64, then by powers of two, from 1024 and from 1519. */
const sizeClass = (len: number): Code[] => [
  ...[op.const(24), get(len), op.const(1519), op.ltU, op.eqz, op.const(2), op.shl, op.add],
  ...[op.const(27), get(len), op.clz, op.sub, op.const(2), op.shl],
  ...[get(len), op.const(1023), op.gtU, op.select],
  ...[get(len), op.const(64), op.eq, op.const(2), op.shl],
  ...[get(len), op.const(64), op.gtU, op.select],
];

/** Adds the frames of one length that have been counted last to the tally: also at a function's end. */
export const tallyRun = (l: L): Code[] => [
  ...[...sizeClass(l.runLen), tee(l.bin)],
  ...[get(l.bin), op.load32(SCRATCH_MEM, SCRATCH.tally), get(l.run), op.add, op.store32(SCRATCH_MEM, SCRATCH.tally)],
  ...add(TALLY_BYTES, [get(l.run), get(l.runLen), op.mul]),
  ...[get(l.runLen), get(l.longest), get(l.runLen), get(l.longest), op.gtU, op.select, set(l.longest)],
];

/** Counts a frame of `len` (a local) bytes. Frames of one length come in runs. */
const tallyLength = (l: L, len: number): Code[] => [
  ...[get(len), get(l.runLen), op.ne],
  op.if(...tallyRun(l), ...[get(len), set(l.runLen), op.const(0), set(l.run)]),
  ...[get(l.run), op.const(1), op.add, set(l.run)],
];

/** Counts a frame, whose first two words `word0` and `word1` load, if it goes to a group. */
const tallyGroup = (word0: Code[], word1: Code[]): Code[] => [
  ...[...word0, op.const(1), op.and],
  op.if(
    ...add(TALLY_GROUP, [op.const(1)]),
    ...[...word0, op.const(-1), op.eq, ...word1, op.const(0xffff), op.and, op.const(0xffff), op.eq, op.and],
    op.if(...add(TALLY_BROADCAST, [op.const(1)])),
  ),
];

/** v128 locals of `take`, which come last of all. */
export const TAKE_WIDE = ['front', 'differ'] as const;
type TakeLocals = L & Record<'i' | 'segment' | 'window' | (typeof TAKE_WIDE)[number], number>;

/**
 * Puts the packet whose buffer `loadBuffer` has found into the burst as number `i`, in segment number `segment`, and leaves if it
 * is too short for that, or asks something of its receiver.
 */
export const takePacket = (l: TakeLocals): Code[] => {
  const put = (array: number, value: Code[], at: number): Code[] => [get(at), ...value, op.store32(SCRATCH_MEM, array)];
  const word = (lane: number): Code[] => [get(l.front), op.lane32(lane)];
  return [
    ...leaveIf(get(l.len), get(l.headerLen), op.const(FRONT_BYTES), op.add, op.ltU),
    ...leaveUnless(get(l.segment), op.const(MAX_SEGMENTS), op.ltU),
    // flags and gso_type
    ...leaveIf(get(l.off), op.load16(SRC)),
    ...[get(l.off), get(l.headerLen), op.add, tee(l.off), op.load128(SRC), set(l.front)],
    ...[...times(l.i, 4), get(l.front), op.store128(SCRATCH_MEM, SCRATCH.front)],
    ...[op.const(0), op.load128(SCRATCH_MEM, SCRATCH.front), get(l.front), op.xor128],
    ...[get(l.differ), op.or128, set(l.differ)],
    ...[get(l.len), get(l.headerLen), op.sub, set(l.len)],
    ...[...times(l.i, 2), set(l.b4), ...times(l.segment, 2), set(l.c4)],
    ...put(SCRATCH.first, [get(l.segment)], l.b4),
    ...put(SCRATCH.len, [get(l.len)], l.b4),
    ...put(SCRATCH.segWindow, [get(l.window)], l.c4),
    ...put(SCRATCH.segOff, [get(l.off)], l.c4),
    ...put(SCRATCH.segLen, [get(l.len)], l.c4),
    ...tallyLength(l, l.len),
    ...tallyGroup(word(0), word(1)),
    ...[get(l.segment), op.const(1), op.add, set(l.segment)],
  ];
};

/** What `take` ends with: counts the last run, and stores how far the packets are alike with the burst's first. */
export const endTake = (l: TakeLocals): Code[] => [
  ...tallyRun(l),
  ...[op.const(0), get(l.differ), op.store128(SCRATCH_MEM, SCRATCH.spread)],
  ...[op.const(0), get(l.longest), op.store32(SCRATCH_MEM, SCRATCH.spread + 4 * SPREAD_LONGEST)],
];

/** What `fill` is told beside the ring: num_buffers in the header's last word, the source, and which packets: where their numbers lie in scratch. */
export const FILL_PARAMS = ['lastWord', 'srcWindow', 'order', 'i', 'end', 'filled'] as const;
export type FillArgs = [lastWord: number, srcWindow: number, order: number, from: number, end: number, filled: number];
export const FILL_LOCALS = ['need', 'payload', 'copyAt'] as const;
type FillLocals = L & Record<(typeof FILL_PARAMS)[number] | (typeof FILL_LOCALS)[number], number>;

/** How the packets are that `fill` delivers: of any kind, or those of a uniform burst, all in the source window, in order. */
export type Kind = 'any' | 'uniform';

/**
 * Takes a packet: b4 is four times its number, c4 its segment's. Of any kind it is order[i], and the function is left if it asks
 * something of its receiver, or is not one piece in the source window. In a uniform burst it is packet i, whose segment is number i.
 */
export const nextPacket = (l: FillLocals, kind: Kind): Code[] => [
  ...(kind === 'any' ? nextOfAny(l) : [...times(l.i, 2), tee(l.b4), set(l.c4)]),
  ...[get(l.b4), op.load32(SCRATCH_MEM, SCRATCH.len), tee(l.payload), get(l.headerLen), op.add, set(l.need)],
];

const nextOfAny = (l: FillLocals): Code[] => [
  ...[get(l.order), ...times(l.i, 2), op.add, op.load32(SCRATCH_MEM), op.const(2), op.shl, set(l.b4)],
  ...leaveIf(get(l.b4), op.load32(SCRATCH_MEM, SCRATCH.needs)),
  ...[get(l.b4), op.load32(SCRATCH_MEM, SCRATCH.first), tee(l.c4), op.const(1), op.add],
  ...leaveIf(get(l.b4), op.load32(SCRATCH_MEM, SCRATCH.first + 4), op.ne),
  ...[...times(l.c4, 2), set(l.c4)],
  ...leaveIf(get(l.c4), op.load32(SCRATCH_MEM, SCRATCH.segWindow), get(l.srcWindow), op.ne),
];

/**
 * Writes the header, lists the copy and counts the packet, whose buffer `loadBuffer` has found to be long enough. A uniform burst goes to
 * one port only and to no group, so that nobody asks who has got what.
 */
export const fillPacket = (l: FillLocals, kind: Kind): Code[] => {
  const front = (word: number): Code[] => [...times(l.b4, 2), op.load32(SCRATCH_MEM, SCRATCH.front + 4 * word)];
  return [
    // eight zero bytes, and four that end the header
    ...[get(l.off), op.const64(0), op.store64(DST)],
    ...[get(l.off), get(l.headerLen), op.add, op.const(4), op.sub, get(l.lastWord), op.store32(DST)],
    ...[get(l.copyAt), get(l.c4), op.load32(SCRATCH_MEM, SCRATCH.segOff), op.store32(SCRATCH_MEM, SCRATCH.copies)],
    ...[get(l.copyAt), get(l.off), get(l.headerLen), op.add, op.store32(SCRATCH_MEM, SCRATCH.copies + 4)],
    ...[get(l.copyAt), get(l.payload), op.store32(SCRATCH_MEM, SCRATCH.copies + 8)],
    ...[get(l.copyAt), op.const(COPY_ENTRY_BYTES), op.add, set(l.copyAt)],
    ...(kind === 'any'
      ? [
          ...[get(l.b4), get(l.b4), op.load32(SCRATCH_MEM, SCRATCH.delivered), op.const(1), op.add],
          op.store32(SCRATCH_MEM, SCRATCH.delivered),
        ]
      : []),
    ...tallyLength(l, l.payload),
    ...(kind === 'any' ? tallyGroup(front(0), front(1)) : []),
    ...[get(l.filled), op.const(1), op.add, set(l.filled)],
    ...[get(l.i), op.const(1), op.add, tee(l.i), get(l.end), op.ltU],
  ];
};

/** Copies what `fillPacket` has listed, and then does what is to be done `afterwards`, if anything is listed. */
export const copyAll = (l: FillLocals, ...afterwards: Code[]): Code[] => [
  get(l.copyAt),
  op.if(...[op.const(SCRATCH.copies), op.const(SCRATCH.copies), get(l.copyAt), op.add, op.call(COPY)], ...afterwards),
];
