/**
 * Packets of bursts into a capture file: gathered in window memory, written by large pieces.
 */
import type { WindowHandle, WindowViews } from '../mem/window.ts';
import { type CaptureFormat, CaptureWriter, NO_ROOM } from '../net/capture-writer.ts';
import { completeChecksum } from '../net/checksum.ts';
import { WallClock } from '../sys/clock.ts';
import { ETHHDR, VLAN_HLEN } from '../uapi/ip.ts';
import { VIRTIO_NET_HDR_MRG_RXBUF } from '../uapi/virtio-net.ts';
import { HEADER_BYTES } from '../virtio-net/burst.ts';
import { NEED_CSUM } from '../virtio-net/offload.ts';
import { BurstCopy, type BurstTools } from './burst-copy.ts';

/** A file that has been opened for appending and has its header, and the memory that goes to it. */
export interface CaptureSinkSpec {
  /** it stays the main thread's */
  readonly fd: number;
  readonly path: string;
  readonly format: CaptureFormat;
  /** which of the interfaces that the header names; pcapng. Default the first */
  readonly interface?: number;
  readonly window: Pick<WindowHandle, 'id'>;
  readonly off: number;
  /** bytes of the buffer: more than the longest frame's record */
  readonly bytes: number;
}

const ADDRESSES = ETHHDR.off.h_proto;
const { csum_start, csum_offset } = VIRTIO_NET_HDR_MRG_RXBUF.off;

export class CaptureSink {
  readonly #tools: BurstTools;
  readonly #views: WindowViews;
  readonly #writer: CaptureWriter;
  readonly #copy: BurstCopy;
  readonly #clock = new WallClock();
  readonly #half: number;
  /** bytes held when `drain` last looked */
  #drained = 0;

  constructor(spec: CaptureSinkSpec, tools: BurstTools) {
    const { fd, format, window, off, bytes } = spec;
    this.#tools = tools;
    this.#views = tools.windows[window.id];
    this.#half = bytes / 2;
    this.#writer = new CaptureWriter(
      fd,
      format,
      { u8: this.#views.u8, dv: this.#views.dv, off, bytes },
      spec.interface,
    );
    this.#copy = new BurstCopy(tools, this.#views);
  }

  /** The errno of the write that failed, or 0: then nothing more is taken. */
  get failed(): number {
    return this.#writer.failed;
  }

  /** Takes the time of the packets that are added until it is called again. */
  stamp(): void {
    this.#clock.read();
    this.#writer.setTime(this.#clock.sec, this.#clock.nsec);
  }

  /** Adds packet `i` of the burst, whose length is fair. The burst must stay until `settle`. @returns false if the file takes no more */
  add(i: number): boolean {
    const { burst } = this.#tools;
    const tag = burst.tagged ? burst.tag[i] : 0;
    const len = burst.len[i] + (tag === 0 ? 0 : VLAN_HLEN);
    let at = this.#writer.failed === 0 ? this.#writer.begin(len) : NO_ROOM;
    if (at === NO_ROOM) {
      this.#copy.flush();
      if (!this.#writer.flush()) return false;
      at = this.#writer.begin(len);
      if (at === NO_ROOM) return false;
    }
    const frameAt = at + len - burst.len[i];
    this.#copy.add(i, frameAt);
    if (burst.needs[i] === NEED_CSUM) this.#complete(i, frameAt);
    if (tag !== 0) this.#insertTag(at, tag);
    return true;
  }

  /** The frame is VLAN_HLEN bytes behind `at`: its addresses move there, and the tag that came beside it behind them. */
  #insertTag(at: number, tag: number): void {
    this.#copy.flush();
    const { u8, dv } = this.#views;
    u8.copyWithin(at, at + VLAN_HLEN, at + VLAN_HLEN + ADDRESSES);
    dv.setInt32(at + ADDRESSES, tag);
  }

  /** Does what the packet's receiver would: a checksum that is left undone looks like a wrong one in the file. */
  #complete(i: number, at: number): void {
    const { header } = this.#tools.burst;
    this.#copy.flush();
    const start = header.getUint16(HEADER_BYTES * i + csum_start, true);
    const len = this.#tools.burst.len[i];
    completeChecksum(this.#views.dv, at + start, len - start, header.getUint16(HEADER_BYTES * i + csum_offset, true));
  }

  /** Packets that were added have been copied: the burst may go. */
  settle(): void {
    this.#copy.flush();
  }

  /** As DevicePort.drain: writes once half of the buffer is full, or nothing has come since the last call. */
  drain(): void {
    const { held } = this.#writer;
    if (held === 0) return;
    if (held >= this.#half || held === this.#drained) this.flush();
    else this.#drained = held;
  }

  flush(): void {
    this.#drained = 0;
    if (this.#writer.held > 0) this.#writer.flush();
  }
}
