/**
 * Windows: 2 GiB of address space in which foreign memory appears at offsets below 2³¹, which V8 handles as small integers.
 *
 * A window is a shared WebAssembly.Memory over whose pages files are mapped. That is no documented use of WebAssembly, so
 * `selftest.ts` proves it at start; where it does not hold, windows are plain reserved address space behind koffi views.
 */
import { addressOf, viewOf } from '../sys/libc.ts';
import { mapShared, mapZero, reserve } from '../sys/memory.ts';

export const WINDOW_BYTES = 2 ** 31;
/** The last pages stay unmapped: a 16-byte load at the end of guest memory remains inside the window. */
export const WINDOW_USABLE_BYTES = WINDOW_BYTES - 65536;
const WASM_PAGE = 65536;
/** Offsets in a window begin here: a zero offset is a mistake. */
const FIRST_OFF = 65536;

export type WindowKind = 'wasm' | 'view';

/** What an lcore needs to open a window of its own process; survives postMessage. */
export interface WindowHandle {
  readonly id: number;
  /** set for a window of kind 'wasm' */
  readonly memory?: WebAssembly.Memory;
  /** where the window begins in this process */
  readonly address: bigint;
}

/** A window as one thread sees it. Typed arrays of one kind share a hidden class, whichever window they belong to. */
export interface WindowViews {
  /** the window's number in its process */
  readonly id: number;
  /** set for a window of kind 'wasm' */
  readonly memory: WebAssembly.Memory | undefined;
  /** all of the window, by bytes */
  readonly u8: Uint8Array;
  /** by 16-bit words */
  readonly u16: Uint16Array;
  /** by 32-bit words */
  readonly i32: Int32Array;
  /** at any offset, in any byte order */
  readonly dv: DataView;
}

/** Opens a window on the calling thread. It must stay in its pool for as long as the views are used. */
export function openWindow(handle: WindowHandle): WindowViews {
  const buffer = handle.memory?.buffer ?? viewOf(handle.address, WINDOW_BYTES);
  return {
    id: handle.id,
    memory: handle.memory,
    u8: new Uint8Array(buffer),
    u16: new Uint16Array(buffer),
    i32: new Int32Array(buffer),
    dv: new DataView(buffer),
  };
}

/** The process's windows. They are never freed, only taken back: an lcore may still hold views of one. */
export class WindowPool {
  readonly kind: WindowKind;
  readonly #free: WindowHandle[] = [];
  #made = 0;

  constructor(kind: WindowKind) {
    this.kind = kind;
  }

  /** A window of zero pages. The caller gives it back with `release`. */
  acquire(): WindowHandle {
    return this.#free.pop() ?? this.#make();
  }

  #make(): WindowHandle {
    const id = this.#made++;
    if (this.kind === 'view') return { id, address: reserve(WINDOW_BYTES) };
    const pages = WINDOW_BYTES / WASM_PAGE;
    const memory = new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
    return { id, memory, address: addressOf(memory.buffer) };
  }

  /** Windows that have been acquired and not released. */
  get lent(): number {
    return this.#made - this.#free.length;
  }

  /** Takes a window back once nothing is mapped in it and no lcore uses it. */
  release(window: WindowHandle): void {
    this.#free.push(window);
  }
}

/** The first offset of a window that may be used and whose address suits pages of `page` bytes. */
export function firstOffset(window: WindowHandle, page: number): number {
  const from = window.address + BigInt(FIRST_OFF);
  const size = BigInt(page);
  return FIRST_OFF + Number((size - (from % size)) % size);
}

/** Maps `len` bytes of `fd` from `fileOff` at `windowOff`; all three are multiples of the file's page size in address space. */
export function mapInto(window: WindowHandle, windowOff: number, len: number, fd: number, fileOff: number): void {
  if (windowOff < 0 || windowOff + len > WINDOW_USABLE_BYTES) throw new RangeError('mapping outside its window');
  mapShared(window.address + BigInt(windowOff), len, fd, fileOff);
}

/** Puts zero pages back, so that a stale offset reads zeros instead of faulting. */
export function unmapFrom(window: WindowHandle, windowOff: number, len: number): void {
  mapZero(window.address + BigInt(windowOff), len);
}
