import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { CopyStage, copySegments, MAX_COPY_ENTRIES } from '../../src/mem/copy-stage.ts';
import { chooseWindowKind, selfTest } from '../../src/mem/selftest.ts';
import { openWindow, WINDOW_BYTES, type WindowKind, WindowPool, type WindowViews } from '../../src/mem/window.ts';

/** Source bytes and destination cells lie here in every window; the last area ends with the window. */
const SRC = 65536;
const DST = 2 ** 24;
const END = WINDOW_BYTES;
/** Bytes between the cells' beginnings beyond the longest segment: canaries before and after. */
const MARGIN = 96;
const CANARY = 0xa5;

type Move = (list: Int32Array, n: number, src: WindowViews, dst: WindowViews) => void;

const pools = { wasm: new WindowPool('wasm'), view: new WindowPool('view') };
const open = (kind: WindowKind) => {
  const views = openWindow(pools[kind].acquire());
  return { views, bytes: Buffer.from(views.u8.buffer, 0, WINDOW_BYTES) };
};
type OpenWindow = ReturnType<typeof open>;

const wasm = [open('wasm'), open('wasm')] as const;
const view = [open('view'), open('view')] as const;
const stage = new CopyStage();
const byModule: Move = (list, n, src, dst) => {
  stage.list.set(list.subarray(0, 3 * n));
  stage.flush(src, dst, n);
};

function fillSource({ bytes }: OpenWindow, at: number, len: number): void {
  for (let i = 0; i < len; i++) bytes[at + i] = (i * 167 + (i >> 8) * 13 + 1) & 0xff;
}
for (const window of [...wasm, ...view]) fillSource(window, SRC, 2 ** 16);

interface Segment {
  readonly from: number;
  readonly to: number;
  readonly len: number;
}

/** Moves the segments, whose destinations lie in `area` … `area` + `areaLen`, and compares all of that area with what must be there. */
function expectExact(
  move: Move,
  src: OpenWindow,
  dst: OpenWindow,
  segments: readonly Segment[],
  area: number,
  areaLen: number,
): void {
  const expected = Buffer.alloc(areaLen, CANARY);
  for (const { from, to, len } of segments) src.bytes.copy(expected, to - area, from, from + len);
  dst.bytes.fill(CANARY, area, area + areaLen);
  const list = Int32Array.from(segments.flatMap(({ from, to, len }) => [from, to, len]));
  move(list, segments.length, src.views, dst.views);
  const got = dst.bytes.subarray(area, area + areaLen);
  if (expected.equals(got)) return;
  const wrong = segments.find(({ to, len }) => {
    const at = to - area;
    return !expected.subarray(at - 16, at + len + 16).equals(got.subarray(at - 16, at + len + 16));
  });
  assert.fail(`wrong bytes in or around segment ${JSON.stringify(wrong)}`);
}

/** One segment of `len` bytes for each alignment of source and destination, each in a cell of its own. */
function allAlignments(len: number): { segments: Segment[]; areaLen: number } {
  const cell = Math.ceil((len + MARGIN) / 16) * 16;
  const segments = Array.from({ length: 256 }, (_, i) => ({
    from: SRC + 32 + (i & 15),
    to: DST + cell * i + 32 + (i >> 4),
    len,
  }));
  return { segments, areaLen: cell * 256 };
}

const LONGER = [301, 511, 512, 513, 1023, 1500, 1514, 2047, 2049, 4095, 4097, 8999, 9728, 9740, 10000];

for (const [name, move] of [
  ['module', byModule],
  ['TypeScript copy', copySegments],
] as const) {
  test(`copy: the ${name} writes exactly the bytes asked for, at every length and alignment`, () => {
    for (const len of [...Array(301).keys(), ...LONGER]) {
      const { segments, areaLen } = allAlignments(len);
      expectExact(move, wasm[0], wasm[1], segments, DST, areaLen);
    }
  });
}

test('copy: source and destination may be the same window', () => {
  for (const len of [0, 1, 15, 16, 63, 64, 65, 1500]) {
    const { segments, areaLen } = allAlignments(len);
    expectExact(byModule, wasm[0], wasm[0], segments, DST, areaLen);
    expectExact(byModule, view[0], view[0], segments, DST, areaLen);
  }
});

test('copy: offsets near 2^31 work, up to the last byte of the window', () => {
  const room = 4096;
  for (const move of [byModule, copySegments]) {
    for (const len of [1, 2, 3, 4, 7, 8, 15, 16, 17, 63, 64, 65, 127, 1500]) {
      fillSource(wasm[0], END - room, room);
      expectExact(move, wasm[0], wasm[1], [{ from: END - len, to: END - len, len }], END - room, room);
      expectExact(move, wasm[0], wasm[1], [{ from: END - room + 3, to: END - 16 - len, len }], END - room, room);
    }
  }
});

test('copy: the module cannot leave its windows', () => {
  for (const [from, to, len] of [
    [SRC, END - 8, 9],
    [SRC, END - 64, 65],
    [SRC, -16, 16],
    [END - 15, DST, 16],
    [-64, DST, 64],
    [END - 1, DST, 2],
  ] as const) {
    fillSource(wasm[0], END - 64, 64);
    assert.throws(
      () => byModule(Int32Array.of(from, to, len), 1, wasm[0].views, wasm[1].views),
      WebAssembly.RuntimeError,
    );
  }
});

test('copy: a full list of segments is moved, and only as many as asked for', () => {
  const segments = Array.from({ length: MAX_COPY_ENTRIES }, (_, i) => ({
    from: SRC + i,
    to: DST + 64 + 128 * i,
    len: 60,
  }));
  expectExact(byModule, wasm[0], wasm[1], segments, DST, 128 * (MAX_COPY_ENTRIES + 1));
  const list = Int32Array.from(segments.flatMap(({ from, to, len }) => [from, to, len]));
  wasm[1].bytes.fill(CANARY, DST, DST + 1024);
  byModule(list, MAX_COPY_ENTRIES, wasm[0].views, wasm[0].views);
  byModule(list, 1, wasm[0].views, wasm[1].views);
  byModule(list, 0, wasm[0].views, wasm[1].views);
  assert.equal(wasm[1].bytes[DST + 64 + 128], CANARY);
  assert.notEqual(wasm[1].bytes[DST + 64], CANARY);
});

test('copy: windows of both kinds, and one of each, give the same bytes', () => {
  const segments = [0, 1, 5, 16, 33, 64, 100, 1514, 9000].map((len, i) => ({
    from: SRC + 7 * i,
    to: DST + 64 + 16384 * i + i,
    len,
  }));
  for (const src of [wasm[0], view[0]])
    for (const dst of [wasm[1], view[1]]) expectExact(byModule, src, dst, segments, DST, 16384 * 10);
});

test('copy: any list of segments between any windows is moved exactly', () => {
  const segment = fc.record({
    from: fc.integer({ min: 0, max: 3000 }),
    gap: fc.integer({ min: 0, max: 40 }),
    len: fc.oneof(fc.integer({ min: 0, max: 80 }), fc.integer({ min: 0, max: 3000 })),
  });
  const windows = [...wasm, ...view];
  const which = fc.integer({ min: 0, max: 3 });
  fc.assert(
    fc.property(fc.array(segment, { minLength: 1, maxLength: 60 }), which, which, (cells, src, dst) => {
      let to = DST + 64;
      const segments = cells.map(({ from, gap, len }) => {
        to += gap;
        const placed = { from: SRC + from, to, len };
        to += len;
        return placed;
      });
      expectExact(byModule, windows[src], windows[dst], segments, DST, to + 64 - DST);
    }),
    { numRuns: 300 },
  );
});

test('self-test: both kinds of window hold a file, and WebAssembly is chosen', () => {
  assert.equal(selfTest('wasm'), undefined);
  assert.equal(selfTest('view'), undefined);
  assert.deepEqual(chooseWindowKind(), { kind: 'wasm' });
});
