/**
 * The load generator's way through packed rings, in WebAssembly: each descriptor says itself whose it is, so that offering one, and
 * seeing that it is used, are a store and a load per buffer, which the switch must not have to wait for.
 */
import { assemble, type Code, type FunctionBody, I32, op } from '../src/mem/wasm-assembler.ts';
import { WINDOW_BYTES, type WindowViews } from '../src/mem/window.ts';
import { VIRTQ_MAX_SIZE, VRING_PACKED_DESC } from '../src/uapi/virtio-ring.ts';
import { AVAIL_USED, USED } from '../src/virtqueue/packed-ring.ts';

const { get, set, tee } = op;
const { off: DESC } = VRING_PACKED_DESC;
const WASM_PAGE = 65536;
/** the ring's window, and what is to be written into its descriptors */
const RING = 0;
const TABLE = 1;

/** In the table: buffers found that were used out of order, and found that were used without being named. Then the entries. */
export const DISORDER_WORD = 0;
export const SKIPPED_WORD = 1;
const HEAD_BYTES = 8;
/** An entry is what a descriptor holds behind its address: length, id and flags. */
const ENTRY_BYTES = 8;
/** One for each descriptor in the lap with wrap counter 1, then for each in the one with 0. */
export const entryOff = (place: number) => HEAD_BYTES + place * ENTRY_BYTES;
const TABLE_PAGES = Math.ceil(entryOff(2 * VIRTQ_MAX_SIZE) / WASM_PAGE);

/** i32.atomic.load: everything behind it comes behind it. */
const atomicLoad32 = (mem: number, offset: number): Code => [0xfe, 0x10, 0x42, mem, offset];
/** i64.atomic.store: everything before it comes before it. */
const atomicStore64 = (mem: number, offset: number): Code => [0xfe, 0x18, 0x43, mem, offset];
const addOne = (word: number): Code[] => [
  ...[op.const(0), op.const(0), op.load32(TABLE, 4 * word), op.const(1), op.add, op.store32(TABLE, 4 * word)],
];

type Finding = Record<'desc' | 'mask' | 'laps' | 'place' | 'at' | 'entry', number>;

/** The two laps of places that the table has: mask and the bit above it. */
const countLaps = (l: Finding): Code[] => [get(l.mask), op.const(1), op.shl, op.const(1), op.or, set(l.laps)];

/** The descriptor's offset to `at` and its entry's to `entry`. */
const find = (l: Finding): Code[] => [
  ...[get(l.place), get(l.mask), op.and, op.const(4), op.shl, get(l.desc), op.add, set(l.at)],
  ...[get(l.place), get(l.laps), op.and, op.const(3), op.shl, set(l.entry)],
];

/**
 * usedTo(desc, mask, place, end, inOrder) → the first place from `place` on, below `end`, that the device has not used; or `end`.
 * A descriptor's id and flags are one word, and so are the table's: in both laps a used descriptor differs from an offered one in USED.
 */
function usedFunction(): FunctionBody {
  const l = { desc: 0, mask: 1, place: 2, end: 3, inOrder: 4, at: 5, entry: 6, laps: 7, change: 8 };
  return {
    name: 'usedTo',
    params: 5,
    result: true,
    locals: [I32, I32, I32, I32],
    code: [
      ...countLaps(l),
      op.block(
        ...[get(l.place), get(l.end), op.geU, op.leaveIf(0)],
        op.doWhile(
          ...find(l),
          ...[get(l.at), atomicLoad32(RING, DESC.id), get(l.entry), op.load32(TABLE, HEAD_BYTES + 4), op.xor],
          ...[tee(l.change), op.const((AVAIL_USED << 16) | 0xffff), op.and, op.const(USED << 16), op.ne],
          op.if(
            ...[get(l.change), op.const(AVAIL_USED << 16), op.and, op.const(USED << 16), op.ne, op.leaveIf(2)],
            // It names another buffer: in order, one so far ahead, for ids go round with the ring.
            ...[get(l.at), op.load16(RING, DESC.id), get(l.entry), op.load16(TABLE, HEAD_BYTES + 4), op.sub],
            ...[get(l.mask), op.and, set(l.change)],
            get(l.inOrder),
            op.ifElse(addOne(SKIPPED_WORD), [...addOne(DISORDER_WORD), op.const(0), set(l.change)]),
            // it cannot have used more than it was offered
            ...[get(l.place), get(l.change), op.add, get(l.end), op.geU],
            op.if(...addOne(DISORDER_WORD), op.const(0), set(l.change)),
            ...[get(l.place), get(l.change), op.add, set(l.place)],
          ),
          ...[get(l.place), op.const(1), op.add, tee(l.place), get(l.end), op.ltU],
        ),
      ),
      get(l.place),
    ],
  };
}

/** offer(desc, mask, place, end): makes the descriptors from `place` up to `end` available, at least one, and the first one last. */
function offerFunction(): FunctionBody {
  const l = { desc: 0, mask: 1, first: 2, place: 3, at: 4, entry: 5, laps: 6 };
  const store = (how: (mem: number, offset: number) => Code): Code[] => [
    ...find(l),
    ...[get(l.at), get(l.entry), op.load64(TABLE, HEAD_BYTES), how(RING, DESC.len)],
  ];
  const before: Code[] = [get(l.place), op.const(1), op.sub, tee(l.place)];
  return {
    name: 'offer',
    params: 4,
    result: false,
    locals: [I32, I32, I32],
    code: [
      ...countLaps(l),
      op.block(op.doWhile(...[...before, get(l.first), op.eq, op.leaveIf(1)], ...store(op.store64), op.const(1))),
      // A device stops at the first one that is not available, so this shows all of them.
      ...store(atomicStore64),
    ],
  };
}

interface LoopExports {
  usedTo(desc: number, mask: number, place: number, end: number, inOrder: number): number;
  offer(desc: number, mask: number, place: number, end: number): void;
}

/** The functions for one ring, and its table. */
export interface PackedLoop extends LoopExports {
  readonly table: DataView;
}

let compiled: WebAssembly.Module | undefined;

/** A loop over one ring, with a zeroed table. Throws TypeError where windows are not WebAssembly's. */
export function packedLoop({ memory }: WindowViews): PackedLoop {
  if (memory === undefined) throw new TypeError('packed rings need windows that are WebAssembly memories');
  compiled ??= new WebAssembly.Module(
    assemble(
      [
        { name: 'ring', pages: WINDOW_BYTES / WASM_PAGE, shared: true },
        { name: 'table', pages: TABLE_PAGES, shared: false },
      ],
      [usedFunction(), offerFunction()],
    ),
  );
  const table = new WebAssembly.Memory({ initial: TABLE_PAGES, maximum: TABLE_PAGES });
  const { usedTo, offer } = new WebAssembly.Instance(compiled, { m: { ring: memory, table } })
    .exports as unknown as LoopExports;
  return { usedTo, offer, table: new DataView(table.buffer) };
}
