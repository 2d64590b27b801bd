/**
 * The copy stage in WebAssembly: moves segments from one window to another with 16-byte loads and stores.
 *
 * A module instance reaches exactly three memories: the source window, the destination window and the lcore's scratch, where
 * the list of segments lies. It writes exactly the bytes asked for: what lies behind them belongs to the guest.
 */
import { assemble, type FunctionBody, I32, type MemoryImport, op, V128 } from './wasm-assembler.ts';
import { WINDOW_BYTES } from './window.ts';

/** The memories' numbers, in every module over a pair of windows. */
export const SRC = 0;
export const DST = 1;
export const SCRATCH = 2;
const WASM_PAGE = 65536;

/** One segment in the list: source offset, destination offset, length, each an i32. */
export const COPY_ENTRY_BYTES = 12;
/** Scratch memory of one user of the module, pages. */
export const SCRATCH_PAGES = 1;

/** copy(listOff, endOff): moves the segments listed in scratch from `listOff` up to `endOff`, at least one. */
export function copyFunction(): FunctionBody {
  const [list, end, src, dst, len, left, a, b, c, d] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9];
  const { get, set, tee } = op;
  const advance = (bytes: number) => [
    ...[get(src), op.const(bytes), op.add, set(src)],
    ...[get(dst), op.const(bytes), op.add, set(dst)],
  ];
  const move = (load: (mem: number, offset?: number) => readonly number[], store: typeof load) =>
    [get(dst), get(src), load(SRC), store(DST)].flat();
  /** The last `bytes` bytes of a segment not shorter than that, overlapping what was moved before. */
  const moveTail = (bytes: number, load: (mem: number, offset?: number) => readonly number[], store: typeof load) =>
    [
      ...[get(dst), get(left), op.add, op.const(bytes), op.sub],
      ...[get(src), get(left), op.add, op.const(bytes), op.sub],
      ...[load(SRC), store(DST)],
    ].flat();
  const below16 = [
    ...[get(left), op.const(8), op.and],
    op.ifElse(
      [move(op.load64, op.store64), moveTail(8, op.load64, op.store64)],
      [
        ...[get(left), op.const(4), op.and],
        op.ifElse(
          [move(op.load32, op.store32), moveTail(4, op.load32, op.store32)],
          [
            ...[get(left), op.const(2), op.and],
            op.if(move(op.load16, op.store16)),
            ...[get(left), op.const(1), op.and],
            op.if(moveTail(1, op.load8, op.store8)),
          ],
        ),
      ],
    ),
  ];
  return {
    name: 'copy',
    params: 2,
    result: false,
    locals: [I32, I32, I32, I32, V128, V128, V128, V128],
    code: [
      op.doWhile(
        ...[get(list), op.load32(SCRATCH, 0), set(src)],
        ...[get(list), op.load32(SCRATCH, 4), set(dst)],
        ...[get(list), op.load32(SCRATCH, 8), tee(len), set(left)],
        ...[get(left), op.const(64), op.geU],
        op.if(
          op.doWhile(
            ...[get(src), op.load128(SRC, 0), set(a), get(src), op.load128(SRC, 16), set(b)],
            ...[get(src), op.load128(SRC, 32), set(c), get(src), op.load128(SRC, 48), set(d)],
            ...[get(dst), get(a), op.store128(DST, 0), get(dst), get(b), op.store128(DST, 16)],
            ...[get(dst), get(c), op.store128(DST, 32), get(dst), get(d), op.store128(DST, 48)],
            ...advance(64),
            ...[get(left), op.const(64), op.sub, tee(left), op.const(64), op.geU],
          ),
        ),
        ...[get(left), op.const(16), op.geU],
        op.if(
          op.doWhile(
            move(op.load128, op.store128),
            ...advance(16),
            ...[get(left), op.const(16), op.sub, tee(left), op.const(16), op.geU],
          ),
        ),
        get(left),
        op.if(...[get(len), op.const(16), op.geU], op.ifElse([moveTail(16, op.load128, op.store128)], below16)),
        ...[get(list), op.const(COPY_ENTRY_BYTES), op.add, tee(list), get(end), op.ltU],
      ),
    ],
  };
}

export interface CopyExports {
  copy(listOff: number, endOff: number): void;
}

/** The memories that every module over a pair of windows imports, in this order. */
export const PAIR_MEMORIES: readonly MemoryImport[] = [
  { name: 'src', pages: WINDOW_BYTES / WASM_PAGE, shared: true },
  { name: 'dst', pages: WINDOW_BYTES / WASM_PAGE, shared: true },
  { name: 'scratch', pages: SCRATCH_PAGES, shared: false },
];

export const copyModule = () => new WebAssembly.Module(assemble(PAIR_MEMORIES, [copyFunction()]));
