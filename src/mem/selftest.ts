/**
 * Proves at start what this package takes for granted: that a file mapped over a WebAssembly memory is that memory.
 */
import { closeSync, readSync, writeSync } from 'node:fs';
import { SwitchError } from '../errors.ts';
import { createMemfd } from '../sys/memory.ts';
import { CopyStage } from './copy-stage.ts';
import { mapInto, openWindow, unmapFrom, type WindowKind, WindowPool } from './window.ts';

const BYTES = 65536;
/** A second place near the window's end: big offsets must work as well as small ones. */
const PLACES = [65536, 0x7ffe_0000 - BYTES];

/** Maps a memfd into windows of `kind`, and writes, copies and reads through both. @returns what failed, or undefined. */
export function selfTest(kind: WindowKind): string | undefined {
  const pool = new WindowPool(kind);
  const windows = [pool.acquire(), pool.acquire()];
  const fd = createMemfd('vhost-switch-selftest', BYTES);
  try {
    for (const place of PLACES) {
      for (const window of windows) mapInto(window, place, BYTES, fd, 0);
      const failure = tryPlace(windows.map(openWindow), place, fd);
      for (const window of windows) unmapFrom(window, place, BYTES);
      if (failure !== undefined) return failure;
      if (openWindow(windows[0]).u8[place] !== 0) return 'an unmapped page does not read zero';
    }
    return undefined;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  } finally {
    closeSync(fd);
  }
}

function tryPlace([src, dst]: ReturnType<typeof openWindow>[], place: number, fd: number): string | undefined {
  const text = Buffer.from('what the file holds, the window shows');
  writeSync(fd, text, 0, text.length, 0);
  if (Buffer.compare(text, Buffer.from(src.u8.slice(place, place + text.length))) !== 0)
    return 'a mapped file does not show in its window';
  const stage = new CopyStage();
  stage.list.set([place, place + 100, text.length]);
  stage.flush(src, dst, 1);
  const back = Buffer.alloc(text.length);
  readSync(fd, back, 0, back.length, 100);
  return Buffer.compare(text, back) === 0 ? undefined : 'a copy between windows does not reach the file';
}

/** The kind of windows this process can have: 'wasm', or 'view' with the reason why not. Throws if neither works. */
export function chooseWindowKind(): { kind: WindowKind; reason?: string } {
  const reason = selfTest('wasm');
  if (reason === undefined) return { kind: 'wasm' };
  const worse = selfTest('view');
  if (worse !== undefined)
    throw new SwitchError('NO_WINDOWS', `guest memory cannot be mapped on this machine: ${reason}; ${worse}`);
  return { kind: 'view', reason };
}
