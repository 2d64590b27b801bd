import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { DirtyLog, type DirtyLogPlace, VHOST_LOG_PAGE } from '../../src/mem/dirty-log.ts';
import type { GuestPiece } from '../../src/mem/guest-memory.ts';
import { openWindow, WINDOW_USABLE_BYTES, type WindowViews } from '../../src/mem/window.ts';
import { markPages } from '../kit/dirty-marker.ts';
import { dirtyPages } from '../kit/dirty-pages.ts';
import { pool } from '../kit/ram.ts';

const MIB = 2 ** 20;
const GUEST_WINDOWS = [pool.acquire(), pool.acquire(), pool.acquire()];
const logHandle = pool.acquire();
const logWindow = openWindow(logHandle);
/** Only the log's window is opened: marking touches no guest memory. */
const windows: WindowViews[] = [];
windows[logHandle.id] = logWindow;
const LOG_OFF = 65536 + 3;

/** Pieces one behind the other in a window, some of them touching; lengths and addresses need not be multiples of anything. */
const pieceList = fc.array(
  fc.record({
    window: fc.nat(2),
    gap: fc.oneof(fc.constant(0), fc.integer({ min: 0, max: 3 * VHOST_LOG_PAGE })),
    size: fc.oneof(fc.integer({ min: 1, max: 5 * VHOST_LOG_PAGE }), fc.integer({ min: 1, max: 4 * MIB })),
    guestAddr: fc.oneof(
      fc.integer({ min: 0, max: 64 * MIB }),
      fc.integer({ min: -MIB, max: MIB }).map((delta) => 2 ** 32 + delta),
      fc.constantFrom(2 ** 46, 2 ** 52),
    ),
  }),
  { maxLength: 12 },
);

function lay(list: readonly { window: number; gap: number; size: number; guestAddr: number }[]): GuestPiece[] {
  const used = [65536, WINDOW_USABLE_BYTES - 60 * MIB, 2 ** 30];
  return list.map(({ window, gap, size, guestAddr }) => {
    const off = used[window] + gap;
    used[window] = off + size;
    return { window: GUEST_WINDOWS[window].id, off, size, guestAddr };
  });
}

const write = fc.record({
  piece: fc.nat(11),
  at: fc.constantFrom('start', 'end', 'page', 'middle'),
  delta: fc.integer({ min: -3, max: 3 }),
  where: fc.nat(4 * MIB),
  len: fc.oneof(fc.integer({ min: 0, max: 2000 }), fc.integer({ min: 0, max: 70_000 }), fc.constant(MIB)),
  flush: fc.boolean(),
});

/** What the log should say of bytes `off` to `off + len`, one by one in steps that skip no page. */
function naivePages(pages: readonly GuestPiece[], window: number, off: number, len: number, size: number): Set<number> {
  const all = new Set<number>();
  for (const piece of pages) {
    if (piece.window !== window) continue;
    const from = Math.max(off, piece.off);
    const to = Math.min(off + len, piece.off + piece.size);
    for (let at = from; at < to; at = at + 1024 < to || at === to - 1 ? at + 1024 : to - 1) {
      const page = Math.floor((piece.guestAddr + at - piece.off) / 4096);
      if (page < size * 8) all.add(page);
    }
  }
  return all;
}

test('dirty log: the bits are those of the pages written, whatever pieces guest memory is in', () => {
  fc.assert(
    fc.property(
      pieceList,
      fc.array(write, { minLength: 1, maxLength: 60 }),
      fc.constantFrom(1, 7, 2048, 2053, 131_073, 131_200),
      (list, writes, size) => {
        const pages = lay(list);
        const place: DirtyLogPlace = { window: logHandle.id, off: LOG_OFF, size, pages };
        logWindow.u8.fill(0, LOG_OFF - 64, LOG_OFF + size + 64);
        const log = new DirtyLog(place, windows);
        const expected = new Set<number>();
        for (const { piece, at, delta, where, len, flush } of writes) {
          const target = pages[piece % Math.max(1, pages.length)];
          if (target === undefined) log.mark(GUEST_WINDOWS[0].id, 65536 + where, len);
          else {
            const inside = { start: 0, end: target.size, page: where - (where % 4096), middle: where % target.size };
            const off = Math.max(0, target.off + inside[at] + delta);
            log.mark(target.window, off, len);
            for (const page of naivePages(pages, target.window, off, len, size)) expected.add(page);
          }
          if (!flush) continue;
          log.flush();
          assert.deepEqual(dirtyPages(logWindow, place), expected);
        }
        log.flush();
        assert.deepEqual(dirtyPages(logWindow, place), expected);
        assert.equal(log.flush(), false, 'nothing is flushed twice');
        const around = [...logWindow.u8.subarray(LOG_OFF - 64, LOG_OFF)].concat(
          ...logWindow.u8.subarray(LOG_OFF + size, LOG_OFF + size + 64),
        );
        assert.ok(
          around.every((byte) => byte === 0),
          'nothing outside the log is written',
        );
      },
    ),
    { numRuns: 300 },
  );
});

test('dirty log: by guest address it is the same arithmetic, and ends with the log', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 300 }),
      fc.array(
        fc.tuple(
          fc.oneof(
            fc.integer({ min: 0, max: 310 * 8 * 4096 }),
            fc.constantFrom(2 ** 46, 2 ** 53 - 1, 2 ** 32 * 8 * 4096),
          ),
          fc.integer({ min: 0, max: 20_000 }),
        ),
        { maxLength: 100 },
      ),
      (size, writes) => {
        const place: DirtyLogPlace = { window: logHandle.id, off: LOG_OFF, size, pages: [] };
        logWindow.u8.fill(0, LOG_OFF, LOG_OFF + size + 64);
        const log = new DirtyLog(place, windows);
        const expected = new Set<number>();
        for (const [guestAddr, len] of writes) {
          log.markGuest(guestAddr, len);
          for (let at = guestAddr; at < guestAddr + len; at++) {
            if (Math.floor(at / 4096) < size * 8) expected.add(Math.floor(at / 4096));
            else break;
          }
        }
        log.flush();
        assert.deepEqual(dirtyPages(logWindow, { off: LOG_OFF, size: size + 64 }), expected);
      },
    ),
    { numRuns: 300 },
  );
});

test('dirty log: what no piece holds and what lies beyond the log is counted, not written', () => {
  const piece = { window: GUEST_WINDOWS[0].id, off: 65536, size: 8 * 8192, guestAddr: 0 };
  const place: DirtyLogPlace = { window: logHandle.id, off: LOG_OFF, size: 1, pages: [piece] };
  logWindow.u8.fill(0, LOG_OFF, LOG_OFF + 64);
  const log = new DirtyLog(place, windows);
  log.mark(GUEST_WINDOWS[1].id, 65536, 1);
  log.mark(piece.window, piece.off + piece.size, 1);
  log.mark(piece.window, piece.off + 8 * 4096, 1);
  log.markGuest(8 * 4096, 1);
  assert.equal(log.strays, 4);
  assert.equal(log.flush(), false);
  log.mark(piece.window, piece.off - 1, 2); // one byte outside, one inside
  assert.equal(log.strays, 5);
  assert.equal(log.flush(), true);
  assert.deepEqual(dirtyPages(logWindow, { off: LOG_OFF, size: 64 }), new Set([0]));
});

test('dirty log: a log or a piece that does not fit its window is refused', () => {
  const place = { window: logHandle.id, off: LOG_OFF, size: 1, pages: [] };
  const piece = { window: 0, guestAddr: 0 };
  for (const bad of [
    { ...place, off: 2 ** 31 - 1 },
    { ...place, size: 2 ** 31 },
    { ...place, pages: [{ ...piece, off: -1, size: 4 }] },
    { ...place, pages: [{ ...piece, off: 2 ** 30, size: 2 ** 30 }] },
  ])
    assert.throws(() => new DirtyLog(bad, windows), RangeError);
});

test('dirty log: threads that set bits of the same bytes, and a front end that takes them, lose none', async () => {
  const PAGES = 96_000;
  const place: DirtyLogPlace = { window: logHandle.id, off: LOG_OFF, size: PAGES / 8, pages: [] };
  logWindow.u8.fill(0, LOG_OFF, LOG_OFF + place.size);
  const pace = new Int32Array(new SharedArrayBuffer(4));
  const threads = [0, 1].map((first) =>
    markPages({ window: logHandle, place, marking: { first, step: 2, end: PAGES, burst: 8 }, pace, of: 2 }),
  );
  const taken = new Set<number>();
  const take = () => {
    for (const page of dirtyPages(logWindow, place, { take: true })) {
      assert.ok(!taken.has(page), `page ${page} came twice`);
      taken.add(page);
    }
  };
  let rounds = 0;
  const timer = setInterval(() => {
    take();
    rounds++;
  }, 2);
  await Promise.all(threads);
  clearInterval(timer);
  take();
  assert.equal(taken.size, PAGES);
  assert.ok(rounds > 0);
});
