/**
 * The plain way through a virtio-user port's rings in WebAssembly: what the loops of `user-split-ring.ts`, `user-packed-ring.ts` and
 * `user-frames.ts` do in TypeScript, faster: no bounds check, no look at an array before each access.
 *
 * The card's memory, with ring and buffers, is the destination window. Beside the window of what is sent and the burst in scratch
 * memory the functions see the rings' state: private memory, out of the device's reach. What the device says is loaded once into a local,
 * checked there against that memory, and used from there.
 */
import { COPY_ENTRY_BYTES, copyFunction, DST, PAIR_MEMORIES, SCRATCH as SCRATCH_MEM } from '../mem/copy-module.ts';
import { assemble, type Code, type FunctionBody, I32, I64, type MemoryImport, op } from '../mem/wasm-assembler.ts';
import { VIRTIO_NET_HDR_MRG_RXBUF } from '../uapi/virtio-net.ts';
import {
  VRING_DESC,
  VRING_DESC_F_WRITE,
  VRING_PACKED_DESC,
  VRING_PACKED_DESC_F_AVAIL,
  VRING_PACKED_DESC_F_USED,
  VRING_USED_ELEM,
} from '../uapi/virtio-ring.ts';
import { FRONT_BYTES, SCRATCH } from '../virtio-net/burst.ts';
import { COPY, leaveIf, locals, times } from '../virtio-net/module-parts.ts';
import { FAULT_NOT_ON_OFFER, FAULT_TOO_LONG } from './user-fault.ts';

const { get, set, tee } = op;

/** The number of the state's memory: it comes behind those of every module over a pair of windows. */
const STATE = PAIR_MEMORIES.length;
/** Of 64 KiB. */
export const MAX_STATE_PAGES = 4096;
const STATE_MEMORY: MemoryImport = { name: 'state', pages: 1, maxPages: MAX_STATE_PAGES, shared: false };
/** Where in it `list` and `place` leave the bytes of the packets that they have dealt with. */
export const BYTES_OFF = 0;

/** Flags of a packed descriptor, in the word of its id. */
const AVAIL = 1 << (16 + VRING_PACKED_DESC_F_AVAIL);
const USED = 1 << (16 + VRING_PACKED_DESC_F_USED);
const WRITE = VRING_DESC_F_WRITE << 16;
const NUM_BUFFERS = VIRTIO_NET_HDR_MRG_RXBUF.off.num_buffers;

/** What every function is told of a ring: where its state begins (UserRing says what lies there), and its size. */
const RING_PARAMS = ['lens', 'size'] as const;
type RingArgs = [state: number, size: number];
const RING_LOCALS = ['own', 'order', 'posted', 'mask', 'i', 'id', 'len', 'slot', 'at', 'fault', 'batch'] as const;
const WIDE_LOCALS = ['wide'] as const;
type RingLocals = Record<
  (typeof RING_PARAMS)[number] | (typeof RING_LOCALS)[number] | (typeof WIDE_LOCALS)[number],
  number
>;

/** A function of a ring: `code` gets all locals by name, those of every function included. */
function ringFunction<P extends string, O extends string = never>(
  name: string,
  params: readonly P[],
  code: (l: Record<P | O, number> & RingLocals) => Code[],
  others: readonly O[] = [],
): FunctionBody {
  const all = [...RING_PARAMS, ...params];
  const l = locals(all, [...RING_LOCALS, ...others, ...WIDE_LOCALS]) as Record<P | O, number> & RingLocals;
  return {
    name,
    params: all.length,
    result: true,
    locals: [...[...RING_LOCALS, ...others].map(() => I32), ...WIDE_LOCALS.map(() => I64)],
    code: [
      ...[get(l.lens), ...times(l.size, 2), op.add, tee(l.own)],
      ...[...times(l.size, 1), op.add, tee(l.order)],
      ...[...times(l.size, 1), op.add, set(l.posted)],
      ...[get(l.size), op.const(1), op.sub, set(l.mask)],
      ...code(l),
    ],
  };
}

/** The place of entry `from` (code) + `ahead` (a local) in the ring, into a local. */
const placeOf = (l: RingLocals, from: number, ahead: number, into: number): Code[] => [
  ...[get(from), get(ahead), op.add, get(l.mask), op.and, set(into)],
];

/** Ends the loop, with a fault. */
const failIf = (l: RingLocals, fault: number, ...condition: Code[]): Code[] => [
  ...condition,
  op.if(op.const(fault), set(l.fault), op.const(1), op.leaveIf(2)),
];

/** What a function that may find a fault ends with: the negative fault, or the count. */
const countOrFault = (l: RingLocals, count: number): Code[] => [
  ...[op.const(0), get(l.fault), op.sub, get(count), get(l.fault), op.select],
];

const loadPosted = (l: RingLocals): Code[] => [get(l.posted), get(l.id), op.add, op.load8(STATE)];
const setPosted = (l: RingLocals, value: number): Code[] => [
  ...[get(l.posted), get(l.id), op.add, op.const(value), op.store8(STATE)],
];

/** Loads the id at place `slot` of our own buffers. */
const loadOwn = (l: RingLocals): Code[] => [get(l.own), ...times(l.slot, 1), op.add, op.load16(STATE), set(l.id)];

/** Puts a buffer to place `slot` of our own. */
const putOwn = (l: RingLocals, id: Code[], len: Code[]): Code[] => [
  ...[get(l.own), ...times(l.slot, 1), op.add, ...id, op.store16(STATE)],
  ...[get(l.lens), ...times(l.slot, 2), op.add, ...len, op.store32(STATE)],
];

/** Loads the used element `ahead` (a local) entries from `used`: its id and its length. */
const loadUsed = (l: RingLocals & Record<'usedRing' | 'used' | 'lenMask', number>, ahead: number): Code[] => [
  ...placeOf(l, l.used, ahead, l.slot),
  ...[get(l.usedRing), ...times(l.slot, 3), op.add, op.load64(DST), tee(l.wide), op.wrap, set(l.id)],
  ...[get(l.wide), op.const64(32), op.shrU64, op.wrap, get(l.lenMask), op.and, set(l.len)],
];

const outsideRing = (l: RingLocals): Code[] => [get(l.id), get(l.size), op.geU];
const tooLong = (l: RingLocals & Record<'room', number>): Code[] => [get(l.len), get(l.room), op.gtU];

const again = (l: RingLocals, n: number): Code[] => [...[get(l.i), op.const(1), op.add, tee(l.i), get(n), op.ltU]];

/** reapSplit(…ring, usedRing, used, to, n, room, lenMask) → n, or the negative fault. `to`: the end of our own buffers. n > 0. */
const reapSplit = ringFunction('reapSplit', ['usedRing', 'used', 'to', 'n', 'room', 'lenMask'], (l) => [
  op.block(
    op.doWhile(
      ...loadUsed(l, l.i),
      ...failIf(l, FAULT_NOT_ON_OFFER, ...outsideRing(l)),
      ...failIf(l, FAULT_NOT_ON_OFFER, ...loadPosted(l), op.eqz),
      ...failIf(l, FAULT_TOO_LONG, ...tooLong(l)),
      ...setPosted(l, 0),
      ...placeOf(l, l.to, l.i, l.slot),
      ...putOwn(l, [get(l.id)], [get(l.len)]),
      ...again(l, l.n),
    ),
  ),
  ...countOrFault(l, l.n),
]);

/** Takes a batch back whose last buffer is `len` bytes long, and whose others are full: with `used` buffer i is at place i. */
const takeBatch = (l: RingLocals & Record<'to' | 'room' | 'used', number>, ...each: Code[]): Code[] => [
  op.doWhile(
    ...placeOf(l, l.used, l.i, l.id),
    ...each,
    ...placeOf(l, l.to, l.i, l.slot),
    ...putOwn(l, [get(l.id)], [get(l.room)]),
    ...[get(l.i), op.const(1), op.add, set(l.i)],
    ...[get(l.batch), op.const(1), op.sub, tee(l.batch)],
  ),
  ...[get(l.lens), ...times(l.slot, 2), op.add, get(l.len), op.store32(STATE)],
];

/** Buffers from entry `i` behind `used` up to the one that the device names. */
const batchOf = (l: RingLocals & Record<'used', number>): Code[] => [
  ...[get(l.id), get(l.used), op.sub, get(l.i), op.sub, get(l.mask), op.and, op.const(1), op.add, set(l.batch)],
];

/** reapSplitInOrder(…ring, usedRing, used, to, ready, max, room, lenMask) → as reapSplit, `max` or more but not more than `ready`. Both > 0. */
const reapSplitInOrder = ringFunction(
  'reapSplitInOrder',
  ['usedRing', 'used', 'to', 'ready', 'max', 'room', 'lenMask'],
  (l) => [
    op.block(
      op.doWhile(
        ...loadUsed(l, l.i),
        ...failIf(l, FAULT_NOT_ON_OFFER, ...outsideRing(l)),
        ...batchOf(l),
        ...failIf(l, FAULT_NOT_ON_OFFER, get(l.batch), get(l.ready), get(l.i), op.sub, op.gtU),
        ...failIf(l, FAULT_TOO_LONG, ...tooLong(l)),
        ...takeBatch(l),
        ...[get(l.i), get(l.ready), op.ltU, get(l.i), get(l.max), op.ltU, op.and],
      ),
    ),
    ...countOrFault(l, l.i),
  ],
);

/** reapPacked(…ring, desc, used, to, most, onOffer, room, lenMask) → buffers taken back, or the negative fault. most > 0. */
const reapPacked = (name: string, inOrder: boolean): FunctionBody =>
  ringFunction(name, ['desc', 'used', 'to', 'most', 'onOffer', 'room', 'lenMask'], (l) => [
    op.block(
      op.doWhile(
        ...[get(l.used), get(l.i), op.add, set(l.at)],
        ...[get(l.desc), get(l.at), get(l.mask), op.and, op.const(4), op.shl, op.add],
        // Orders the flags before the descriptor and the payload.
        ...[
          op.atomicLoad64(DST, VRING_PACKED_DESC.off.len),
          tee(l.wide),
          op.const64(32),
          op.shrU64,
          op.wrap,
          set(l.id),
        ],
        ...leaveIf(
          ...[get(l.id), op.const(AVAIL | USED), op.and],
          ...[op.const(0), op.const(AVAIL | USED), get(l.at), get(l.size), op.and, op.select, op.ne],
        ),
        // Without WRITE the length means nothing (§2.8.4).
        ...[get(l.wide), op.wrap, get(l.lenMask), op.and, op.const(0), get(l.id), op.const(WRITE), op.and],
        ...[op.select, set(l.len)],
        ...[get(l.id), op.const(0xffff), op.and, set(l.id)],
        ...failIf(l, FAULT_NOT_ON_OFFER, ...outsideRing(l)),
        ...failIf(l, FAULT_NOT_ON_OFFER, ...loadPosted(l), op.eqz),
        ...failIf(l, FAULT_TOO_LONG, ...tooLong(l)),
        ...(inOrder
          ? [
              ...batchOf(l),
              ...failIf(l, FAULT_NOT_ON_OFFER, get(l.batch), get(l.onOffer), get(l.i), op.sub, op.gtU),
              ...takeBatch(l, ...setPosted(l, 0)),
            ]
          : [
              ...setPosted(l, 0),
              ...placeOf(l, l.to, l.i, l.slot),
              ...putOwn(l, [get(l.id)], [get(l.len)]),
              ...[get(l.i), op.const(1), op.add, set(l.i)],
            ]),
        ...[get(l.i), get(l.most), op.ltU],
      ),
    ),
    ...countOrFault(l, l.i),
  ]);

/** offer(…ring, availRing, desc, avail, head, n) → n: fills available entries with the first n of our own buffers. n > 0. */
const offer = (name: string, lengths: boolean): FunctionBody =>
  ringFunction(name, ['availRing', 'desc', 'avail', 'head', 'n'], (l) => [
    op.doWhile(
      ...[...placeOf(l, l.head, l.i, l.slot), ...loadOwn(l), ...setPosted(l, 1)],
      ...[
        get(l.availRing),
        get(l.avail),
        get(l.i),
        op.add,
        get(l.mask),
        op.and,
        op.const(1),
        op.shl,
        op.add,
        set(l.at),
      ],
      // What has its value already stays in the device's cache.
      ...[get(l.at), op.load16(DST), get(l.id), op.ne, op.if(get(l.at), get(l.id), op.store16(DST))],
      ...(lengths
        ? [
            ...[get(l.lens), ...times(l.slot, 2), op.add, op.load32(STATE), set(l.len)],
            ...[
              get(l.desc),
              ...times(l.id, 4),
              op.add,
              tee(l.at),
              op.load32(DST, VRING_DESC.off.len),
              get(l.len),
              op.ne,
            ],
            op.if(get(l.at), get(l.len), op.store32(DST, VRING_DESC.off.len)),
          ]
        : []),
      ...again(l, l.n),
    ),
    get(l.n),
  ]);

/**
 * postPacked(…ring, desc, avail, head, n, address, stride, receives, room) → n: makes descriptors of the first n of our own buffers, the
 * first of them without id and flags: the device must not see it yet. `address`: buffer 0's, lower half. n > 0.
 */
const postPacked = ringFunction(
  'postPacked',
  ['desc', 'avail', 'head', 'n', 'address', 'stride', 'receives', 'room'],
  (l) => {
    const word = [
      ...[get(l.id), op.const(WRITE), op.const(0), get(l.receives), op.select, op.or],
      ...[op.const(USED), op.const(AVAIL), get(l.avail), get(l.i), op.add, get(l.size), op.and, op.select, op.or],
    ];
    const { addr, len } = VRING_PACKED_DESC.off;
    return [
      op.doWhile(
        ...[...placeOf(l, l.head, l.i, l.slot), ...loadOwn(l), ...setPosted(l, 1)],
        ...[
          get(l.room),
          get(l.lens),
          ...times(l.slot, 2),
          op.add,
          op.load32(STATE),
          get(l.receives),
          op.select,
          set(l.len),
        ],
        ...placeOf(l, l.avail, l.i, l.slot),
        ...[get(l.order), ...times(l.slot, 1), op.add, get(l.id), op.store16(STATE)],
        ...[get(l.desc), ...times(l.slot, 4), op.add, tee(l.at)],
        ...[get(l.id), get(l.stride), op.mul, get(l.address), op.add, op.extend, op.store64(DST, addr)],
        get(l.i),
        op.ifElse(
          [
            ...[get(l.at), ...word, op.extend, op.const64(32), op.shl64, get(l.len), op.extend, op.or64],
            op.store64(DST, len),
          ],
          [get(l.at), get(l.len), op.store32(DST, len)],
        ),
        ...again(l, l.n),
      ),
      get(l.n),
    ];
  },
);

/** What `list` and `place` count in, beside what every function has: the bytes of their packets, and four times a packet's number. */
const PACKET_LOCALS = ['bytes', 'b4', 'c4', 'header', 'copyAt'] as const;
type PacketLocals = RingLocals & Record<(typeof PACKET_LOCALS)[number], number>;

const addBytes = (l: PacketLocals): Code[] => [get(l.bytes), get(l.len), op.add, set(l.bytes)];
const leaveBytes = (l: PacketLocals): Code[] => [op.const(BYTES_OFF), get(l.bytes), op.store32(STATE)];
const putWord = (array: number, at: number, value: number): Code[] => [
  ...[get(at), get(value), op.store32(SCRATCH_MEM, array)],
];
const loadWord = (array: number, at: number): Code[] => [get(at), op.load32(SCRATCH_MEM, array)];
/** The frame in the buffer `id`, into `at`. */
const findFrame = (l: PacketLocals & Record<'frames' | 'stride', number>): Code[] => [
  ...[get(l.frames), get(l.id), get(l.stride), op.mul, op.add, set(l.at)],
];

/**
 * list(…ring, head, frames, stride, headerLen, numMask, flagMask, window, n) → the first of the first n of our own buffers that does not
 * hold a plain frame, or n: those before it are the burst's packets. `frames`: where the frame in buffer 0 begins; `numMask`, `flagMask`:
 * all ones if num_buffers must be 1, and if flags and gso_type must be 0. n > 0.
 */
const list = ringFunction(
  'list',
  ['head', 'frames', 'stride', 'headerLen', 'numMask', 'flagMask', 'window', 'n'],
  (l) => [
    op.block(
      op.doWhile(
        ...[...placeOf(l, l.head, l.i, l.slot), ...loadOwn(l), ...findFrame(l)],
        ...[get(l.lens), ...times(l.slot, 2), op.add, op.load32(STATE), get(l.headerLen), op.sub, set(l.len)],
        ...leaveIf(get(l.len), op.const(FRONT_BYTES), op.ltS),
        ...[get(l.at), get(l.headerLen), op.sub, tee(l.header), op.load16(DST), get(l.flagMask), op.and],
        ...[
          get(l.header),
          op.load16(DST, NUM_BUFFERS),
          op.const(1),
          op.xor,
          get(l.numMask),
          op.and,
          op.or,
          op.leaveIf(1),
        ],
        ...times(l.i, 2),
        set(l.b4),
        ...putWord(SCRATCH.first, l.b4, l.i),
        ...putWord(SCRATCH.len, l.b4, l.len),
        ...putWord(SCRATCH.segWindow, l.b4, l.window),
        ...putWord(SCRATCH.segOff, l.b4, l.at),
        ...putWord(SCRATCH.segLen, l.b4, l.len),
        ...[...times(l.i, 4), get(l.at), op.load128(DST), op.store128(SCRATCH_MEM, SCRATCH.front)],
        ...addBytes(l),
        ...again(l, l.n),
      ),
    ),
    ...leaveBytes(l),
    get(l.i),
  ],
  PACKET_LOCALS,
);

/**
 * place(…ring, head, frames, stride, headerLen, maxLen, clear, window, numbers, n) → the first packet of n that is something else than one
 * piece of up to `maxLen` bytes in the source window, which needs nothing, or n: those before it are copied into our first buffers, and
 * counted as delivered. `numbers`: where the packets' numbers lie in scratch memory; `clear`: the buffers' headers may not be zero. n > 0.
 */
const place = ringFunction(
  'place',
  ['head', 'frames', 'stride', 'headerLen', 'maxLen', 'clear', 'window', 'numbers', 'n'],
  (l) => [
    op.block(
      op.doWhile(
        ...[get(l.numbers), ...times(l.i, 2), op.add, op.load32(SCRATCH_MEM), op.const(2), op.shl, set(l.b4)],
        // BAD_OFFLOAD is negative
        ...leaveIf(...loadWord(SCRATCH.len, l.b4), tee(l.len), get(l.maxLen), op.gtU),
        ...leaveIf(...loadWord(SCRATCH.needs, l.b4)),
        ...[...loadWord(SCRATCH.first, l.b4), tee(l.c4), op.const(1), op.add],
        ...leaveIf(...loadWord(SCRATCH.first + 4, l.b4), op.ne),
        ...[...times(l.c4, 2), set(l.c4)],
        ...leaveIf(...loadWord(SCRATCH.segWindow, l.c4), get(l.window), op.ne),
        ...[...placeOf(l, l.head, l.i, l.slot), ...loadOwn(l), ...findFrame(l)],
        get(l.clear),
        op.if(
          ...[get(l.at), get(l.headerLen), op.sub, tee(l.header), op.const64(0), op.store64(DST)],
          ...[get(l.header), op.const(0), op.store16(DST, 8)],
        ),
        ...[get(l.copyAt), ...loadWord(SCRATCH.segOff, l.c4), op.store32(SCRATCH_MEM, SCRATCH.copies)],
        ...putWord(SCRATCH.copies + 4, l.copyAt, l.at),
        ...putWord(SCRATCH.copies + 8, l.copyAt, l.len),
        ...[get(l.copyAt), op.const(COPY_ENTRY_BYTES), op.add, set(l.copyAt)],
        ...[get(l.lens), ...times(l.slot, 2), op.add, get(l.len), get(l.headerLen), op.add, op.store32(STATE)],
        ...[get(l.b4), ...loadWord(SCRATCH.delivered, l.b4), op.const(1), op.add],
        op.store32(SCRATCH_MEM, SCRATCH.delivered),
        ...addBytes(l),
        ...again(l, l.n),
      ),
    ),
    ...leaveBytes(l),
    get(l.copyAt),
    op.if(op.const(SCRATCH.copies), op.const(SCRATCH.copies), get(l.copyAt), op.add, op.call(COPY)),
    get(l.i),
  ],
  PACKET_LOCALS,
);

type Reap = (
  ...args: [...RingArgs, ring: number, used: number, to: number, n: number, room: number, lenMask: number]
) => number;
type ReapBatches = (
  ...args: [...RingArgs, ring: number, used: number, to: number, n: number, most: number, room: number, lenMask: number]
) => number;
type Offer = (
  ...args: [...RingArgs, availRing: number, desc: number, avail: number, head: number, n: number]
) => number;

/** Told by each function's comment above. */
export interface UserExports {
  reapSplit: Reap;
  reapSplitInOrder: ReapBatches;
  reapPacked: ReapBatches;
  reapPackedInOrder: ReapBatches;
  offer: Offer;
  offerLengths: Offer;
  // biome-ignore format: ring, buffers
  postPacked(...args: [
    ...RingArgs, desc: number, avail: number, head: number, n: number, address: number, stride: number, receives: number, room: number,
  ]): number;
  // biome-ignore format: ring, frames
  list(...args: [
    ...RingArgs, head: number, frames: number, stride: number, headerLen: number, numMask: number, flagMask: number, window: number, n: number,
  ]): number;
  // biome-ignore format: ring, packets
  place(...args: [
    ...RingArgs, head: number, frames: number, stride: number, headerLen: number, maxLen: number, clear: number, window: number,
    numbers: number, n: number,
  ]): number;
}

if (VRING_USED_ELEM.size !== 8 || VRING_DESC.size !== 16 || VRING_PACKED_DESC.size !== 16)
  throw new RangeError('the shifts here count on these sizes');

export const userModule = () =>
  new WebAssembly.Module(
    assemble(
      [...PAIR_MEMORIES, STATE_MEMORY],
      [
        ...[copyFunction(), reapSplit, reapSplitInOrder, reapPacked('reapPacked', false)],
        ...[reapPacked('reapPackedInOrder', true), offer('offer', false), offer('offerLengths', true)],
        ...[postPacked, list, place],
      ],
    ),
  );
