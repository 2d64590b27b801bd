/** A dirty log as the front end has it, which made its file; and what a driver gives its device, as far as pages tell. */
import { closeSync } from 'node:fs';
import { mapInto, openWindow, unmapFrom, type WindowHandle } from '../../src/mem/window.ts';
import { createMemfd } from '../../src/sys/memory.ts';
import type { SharedArea } from '../../src/vhost/vhost-device.ts';
import type { DriverRing, Segment, TablePlace } from '../../src/virtqueue/driver-ring.ts';
import { dirtyPages } from './dirty-pages.ts';
import { pool } from './ram.ts';

export const PAGE = 4096;
const OFF = 65536;

/** Bytes of guest memory. */
export interface Span {
  readonly addr: number;
  readonly len: number;
}

export const pagesOf = (spans: readonly Span[]): Set<number> => {
  const pages = new Set<number>();
  for (const { addr, len } of spans)
    for (let page = Math.floor(addr / PAGE); page * PAGE < addr + len; page++) pages.add(page);
  return pages;
};

export class GuestLog {
  /** for SET_LOG_BASE; the descriptor stays the log's */
  readonly area: SharedArea;
  readonly #window: WindowHandle = pool.acquire();
  readonly #mapped: number;

  /** For guest memory up to `guestEnd`. It begins a page into its file. */
  constructor(guestEnd: number) {
    const size = Math.ceil(guestEnd / PAGE / 8);
    this.#mapped = Math.ceil(size / PAGE) * PAGE;
    this.area = { fd: createMemfd('log', this.#mapped + PAGE), size, fileOff: PAGE };
    mapInto(this.#window, OFF, this.#mapped, this.area.fd, PAGE);
  }

  /** The dirty pages; takes their bits, as a front end does between two rounds. */
  take(): Set<number> {
    return dirtyPages(openWindow(this.#window), { off: OFF, size: this.area.size }, { take: true });
  }

  close(): void {
    unmapFrom(this.#window, OFF, this.#mapped);
    pool.release(this.#window);
    closeSync(this.area.fd);
  }
}

/** Listens to what a driver adds to its ring: which memory each buffer that is out has. */
export class Offered {
  /** by buffer id: the chain's segments, and where its table is */
  readonly buffers = new Map<number, readonly Span[]>();
  /** everything that was ever offered, tables included: what the driver writes of a transmit ring */
  readonly all: Span[] = [];
  readonly tables: Span[] = [];

  constructor(ring: DriverRing) {
    const { add, addIndirect } = ring;
    const note = (id: number, chain: readonly Segment[], n = chain.length) => {
      if (id < 0) return id;
      const spans = chain.slice(0, n).map(({ addr, len }) => ({ addr, len }));
      this.buffers.set(id, spans);
      this.all.push(...spans);
      return id;
    };
    ring.add = (chain, n) => note(add.call(ring, chain, n), chain, n);
    ring.addIndirect = (chain, table: TablePlace, n) => {
      this.tables.push({ addr: table.addr, len: 16 * (n ?? chain.length) });
      return note(addIndirect.call(ring, chain, table, n), chain, n);
    };
  }
}

/** The first `len` bytes of a buffer. */
export function firstBytes(spans: readonly Span[], len: number): Span[] {
  const out: Span[] = [];
  for (const { addr, len: size } of spans) {
    if (len <= 0) break;
    out.push({ addr, len: Math.min(size, len) });
    len -= size;
  }
  return out;
}
