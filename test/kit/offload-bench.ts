/**
 * An OffloadStage with packets cut into pieces of windows, for tests: whatever surrounds the stage's area is watched.
 */
import assert from 'node:assert/strict';
import { openWindow, type WindowViews } from '../../src/mem/window.ts';
import { MIN_BOUNCE_BYTES, OffloadStage } from '../../src/virtio-net/offload-stage.ts';
import { SegmentList } from '../../src/virtqueue/segments.ts';
import { pool } from './ram.ts';

const MARGIN = 4096;
const CANARY = 0xa5;
const BOUNCE_OFF = 2 ** 20 + 3;
const GUEST_OFF = 65536;

/** The offload fields of a virtio_net_hdr. */
export interface Offload {
  readonly gsoType: number;
  readonly gsoSize: number;
  readonly csumStart: number;
  readonly csumOffset: number;
}

export class OffloadBench {
  readonly guests: readonly WindowViews[];
  readonly bounce: WindowViews;
  readonly stage: OffloadStage;
  readonly segments = new SegmentList();
  readonly #windows: WindowViews[] = [];
  readonly #area: Buffer;
  readonly #bytes: number;

  constructor(bytes = MIN_BOUNCE_BYTES + 16) {
    this.guests = [0, 1].map(() => openWindow(pool.acquire()));
    this.bounce = openWindow(pool.acquire());
    for (const window of [...this.guests, this.bounce]) this.#windows[window.id] = window;
    this.stage = new OffloadStage(this.bounce, BOUNCE_OFF, bytes);
    this.#bytes = bytes;
    this.#area = Buffer.from(this.bounce.u8.buffer, BOUNCE_OFF - MARGIN, bytes + 2 * MARGIN);
    this.#area.fill(CANARY, 0, MARGIN);
    this.#area.fill(CANARY, MARGIN + bytes);
  }

  /** Lays the packet over the guests' windows, cut at `cuts`, each piece in the next window, at odd and even places. */
  place(packet: Uint8Array, cuts: readonly number[] = []): void {
    this.segments.count = 0;
    const ends = [...new Set(cuts.map((cut) => cut % packet.length))].sort((a, b) => a - b);
    let from = 0;
    for (const end of [...ends, packet.length]) {
      const window = this.guests[this.segments.count & 1];
      const off = GUEST_OFF + from + 7 * this.segments.count;
      window.u8.set(packet.subarray(from, end), off);
      this.segments.push(window.id, off, end - from);
      from = end;
    }
  }

  /** Converts what was placed; of `len` bytes, all by default. */
  convert({ gsoType, gsoSize, csumStart, csumOffset }: Offload, len?: number): number {
    const { segments } = this;
    const all = segments.len.subarray(0, segments.count).reduce((sum, n) => sum + n, 0);
    const before = this.stage.count;
    const n = this.stage.convert(
      this.#windows,
      segments,
      0,
      segments.count,
      len ?? all,
      ...([gsoType, gsoSize, csumStart, csumOffset] as const),
    );
    assert.equal(this.stage.count, before + Math.max(n, 0));
    this.checkBounds();
    return n;
  }

  /** The frames made since the stage's reset. */
  frames(): Buffer[] {
    const { off, len, count } = this.stage;
    return Array.from({ length: count }, (_, i) => Buffer.from(this.bounce.u8.slice(off[i], off[i] + len[i])));
  }

  /** Nothing beside the area was written, and all frames lie in it, none over another. */
  checkBounds(): void {
    const intact = (part: Buffer) => part.every((byte) => byte === CANARY);
    assert.ok(intact(this.#area.subarray(0, MARGIN)), 'written before the bounce area');
    assert.ok(intact(this.#area.subarray(MARGIN + this.#bytes)), 'written behind the bounce area');
    const { off, len, count } = this.stage;
    let end = BOUNCE_OFF;
    for (let i = 0; i < count; i++) {
      assert.ok(off[i] >= end, `frame ${i} begins before the end of what is before it`);
      end = off[i] + len[i];
    }
    assert.ok(end <= BOUNCE_OFF + this.#bytes, 'a frame ends behind the area');
  }

  /** All windows by id, for a test that puts others in their place. */
  get windows(): WindowViews[] {
    return this.#windows;
  }
}
