/**
 * The dirty log of a guest that is being migrated, where it lies in the opener's own memory: QEMU has it on its heap, which nobody can
 * map. So the device logs to a bitmap of ours, and what is there is carried over: now and then, and before it is told that a ring has
 * stopped.
 *
 * Bits cannot be set in the opener's memory one by one: it clears them meanwhile, and a kernel's vhost device of the same guest may set
 * others. A whole byte can be set without reading what is there. So a page marks its seven neighbours, which are sent once too often.
 * @see VHOST_SET_LOG_BASE; mem/dirty-log.ts
 */
import { ProtocolError } from '../errors.ts';
import { SharedMapping } from '../mem/shared-mapping.ts';
import { openWindow, type WindowPool } from '../mem/window.ts';
import { duplicateFd } from '../sys/descriptor.ts';
import { createMemfd, sealAgainstShrinking } from '../sys/memory.ts';
import { fillMemory, MAX_FILL_RUNS, type MemoryRun } from '../sys/process.ts';
import type { SharedArea } from '../vhost/vhost-device.ts';

/** Guest memory behind one byte of a log: 8 pages. */
const BYTE_SPAN = 8 * 4096;
/** A log for 1 TiB of guest physical addresses. */
const MAX_LOG_BYTES = 32 * 2 ** 20;
const WORD = 4;

/** Bytes of a log for guest memory that ends at `guestEnd`: whole words. Throws ProtocolError if they are too many. */
export function logBytes(guestEnd: number): number {
  const bytes = Math.max(1, Math.ceil(guestEnd / BYTE_SPAN / WORD)) * WORD;
  if (bytes <= MAX_LOG_BYTES) return bytes;
  const problem = `guest memory ends at 0x${guestEnd.toString(16)}, a dirty log takes at most ${MAX_LOG_BYTES} bytes`;
  throw new ProtocolError('BAD_SHARED_AREA', 'SET_LOG_BASE', problem);
}

export class OpenerLog {
  /** bytes */
  readonly size: number;
  readonly #pid: number;
  readonly #base: number;
  readonly #mapping: SharedMapping;
  readonly #words: Int32Array;
  readonly #bytes: Uint8Array;
  /** the mapping's */
  readonly #fd: number;

  /** @param base of the log in the memory of process `pid`. Throws SysError, ProtocolError */
  constructor(pool: WindowPool, pid: number, base: number, size: number) {
    this.size = size;
    this.#pid = pid;
    this.#base = base;
    const fd = createMemfd('vhost-log', size);
    sealAgainstShrinking(fd);
    this.#mapping = new SharedMapping(pool, { fd, size, fileOff: 0 }, 'the dirty log', 'SET_LOG_BASE');
    const { off, handle } = this.#mapping;
    const { i32, u8 } = openWindow(handle);
    this.#words = i32.subarray(off / WORD, (off + size) / WORD);
    this.#bytes = u8.subarray(off, off + size);
    this.#fd = fd;
  }

  /** The bitmap that the device is to write, with a descriptor that is the caller's. */
  get area(): SharedArea {
    return { fd: duplicateFd(this.#fd), size: this.size, fileOff: 0 };
  }

  /**
   * Carries over what has been logged since the last time.
   * @returns true if there was something. Throws SysError: EFAULT, ESRCH, EPERM
   */
  flush(): boolean {
    const words = this.#words;
    let runs: MemoryRun[] = [];
    let some = false;
    for (let at = 0; at < words.length; at++) {
      if (words[at] === 0) continue;
      some = true;
      this.#takeWord(runs, at * WORD);
      if (runs.length < MAX_FILL_RUNS - WORD) continue;
      fillMemory(this.#pid, runs, 0xff);
      runs = [];
    }
    if (runs.length > 0) fillMemory(this.#pid, runs, 0xff);
    return some;
  }

  /** Takes the bytes of a word that have bits, and adds them to the runs, to the last one where they follow it. */
  #takeWord(runs: MemoryRun[], off: number): void {
    for (let i = off; i < off + WORD; i++) {
      if (Atomics.exchange(this.#bytes, i, 0) === 0) continue;
      const address = this.#base + i;
      const last = runs.at(-1);
      if (last !== undefined && last.address + last.len === address) last.len++;
      else runs.push({ address, len: 1 });
    }
  }

  /** The device logs elsewhere. */
  close(): void {
    this.#mapping.release();
  }
}
