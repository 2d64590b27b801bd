/**
 * The transmit and the receive queue of a guest's network card: frames into and out of the buffers of a ring.
 * One thread; frames are copied, in and out. For offering load without copying see `ring` and the benchmark.
 * @see VIRTIO 1.2 §5.1.6
 */
import { SwitchError } from '../errors.ts';
import { VIRTIO_NET_HDR_MRG_RXBUF } from '../uapi/virtio-net.ts';
import { VRING_DESC } from '../uapi/virtio-ring.ts';
import type { DriverRing } from '../virtqueue/driver-ring.ts';
import type { GuestRam, RamPlace } from './guest-ram.ts';

const { off: HDR } = VIRTIO_NET_HDR_MRG_RXBUF;
/** Bytes behind every piece of a buffer that nobody may write, and what they hold. */
const GUARD_BYTES = 16;
const GUARD = 0xa5;

/** How a buffer's bytes are cut into descriptors. */
export interface ChainLayout {
  /** `one` descriptor; the `header` in one of its own; or pieces of so many bytes, wherever the header ends */
  readonly pieces: 'one' | 'header' | number;
  /** the descriptors lie in an indirect table; needs INDIRECT_DESC */
  readonly indirect: boolean;
}

/** The packet header's fields, as in `struct virtio_net_hdr`. */
export interface NetHeader {
  /** VIRTIO_NET_HDR_F_… */
  flags: number;
  /** VIRTIO_NET_HDR_GSO_… */
  gsoType: number;
  /** bytes of Ethernet, IP and TCP headers, as a hint */
  hdrLen: number;
  /** payload of each segment, bytes */
  gsoSize: number;
  /** where to begin the checksum */
  csumStart: number;
  /** where to put it, from there on */
  csumOffset: number;
  /** as received; means something under MRG_RXBUF only. 1 where the header has no such field. */
  numBuffers: number;
}

interface Piece extends RamPlace {
  readonly addr: number;
  readonly off: number;
  /** bytes */
  readonly size: number;
}

/** One buffer in guest memory. The lengths in `chain` change with what is sent. */
interface Slot {
  readonly pieces: readonly Piece[];
  readonly chain: { addr: number; len: number; write: boolean }[];
  readonly table: RamPlace | undefined;
}

function cut(bytes: number, headerLen: number, pieces: ChainLayout['pieces']): number[] {
  if (pieces === 'one') return [bytes];
  if (pieces === 'header') return [headerLen, bytes - headerLen];
  const n = Math.ceil(bytes / pieces);
  return Array.from({ length: n }, (_, i) => Math.min(pieces, bytes - i * pieces));
}

/** The buffers of one queue, each in pieces that do not touch one another. */
class Slots {
  readonly #u8: Uint8Array;
  readonly #slots: Slot[] = [];
  readonly #free: number[] = [];
  /** which buffer has this id in the ring */
  readonly #byId: Uint16Array;
  readonly #ring: DriverRing;

  constructor(ring: DriverRing, ram: GuestRam, bytes: number, headerLen: number, layout: ChainLayout, write: boolean) {
    this.#ring = ring;
    this.#u8 = ram.views.u8;
    this.#byId = new Uint16Array(ring.size);
    const sizes = cut(bytes, headerLen, layout.pieces);
    const room = sizes.reduce((sum, size) => sum + size + GUARD_BYTES, 0);
    if (sizes.length > ring.size)
      throw new RangeError(`${sizes.length} descriptors a buffer in a ring of ${ring.size}`);
    for (let i = 0; i < ring.size; i++) {
      const place = ram.alloc(room);
      let at = 0;
      const pieces = sizes.map((size) => {
        const piece = { addr: place.addr + at, off: place.off + at, size };
        at += size + GUARD_BYTES;
        this.#u8.fill(GUARD, place.off + at - GUARD_BYTES, place.off + at);
        return piece;
      });
      const table = layout.indirect ? ram.alloc(sizes.length * VRING_DESC.size, VRING_DESC.size) : undefined;
      this.#slots.push({ pieces, chain: pieces.map(({ addr, size }) => ({ addr, len: size, write })), table });
      this.#free.push(ring.size - 1 - i);
    }
  }

  /** All buffers are free again: the ring was reset. */
  reset(): void {
    this.#free.length = 0;
    for (let i = this.#slots.length - 1; i >= 0; i--) this.#free.push(i);
  }

  /** Offers `bytes` bytes of a free buffer, filled by `fill`; all of it by default. @returns false if no descriptors are free. */
  add(bytes?: number, fill?: (slot: Slot) => void): boolean {
    if (this.#free.length === 0) return false;
    const i = this.#free[this.#free.length - 1];
    const slot = this.#slots[i];
    let n = slot.pieces.length;
    if (bytes !== undefined) {
      let left = bytes;
      for (n = 0; left > 0; n++) {
        slot.chain[n].len = Math.min(left, slot.pieces[n].size);
        left -= slot.chain[n].len;
      }
    }
    if (slot.table === undefined && n > this.#ring.nFree) return false;
    fill?.(slot);
    const id = slot.table ? this.#ring.addIndirect(slot.chain, slot.table, n) : this.#ring.add(slot.chain, n);
    if (id < 0) return false;
    this.#byId[id] = i;
    this.#free.pop();
    return true;
  }

  /** The buffer reaped with this id; it stays taken until `free`. */
  taken(id: number): number {
    return this.#byId[id];
  }

  free(i: number): void {
    this.#free.push(i);
  }

  /** Copies bytes into a buffer from its byte `from` on. */
  scatter(slot: Slot, from: number, bytes: Uint8Array): void {
    const { pieces } = slot;
    let skip = from;
    let done = 0;
    for (let i = 0; done < bytes.length; i++) {
      const { off, size } = pieces[i];
      const here = Math.min(size - skip, bytes.length - done);
      if (here > 0) {
        this.#u8.set(here === bytes.length ? bytes : bytes.subarray(done, done + here), off + skip);
        done += here;
      }
      skip = Math.max(0, skip - size);
    }
  }

  /** Copies bytes `from` to `to` of buffer `i` to `out` at `at`. */
  gather(i: number, from: number, to: number, out: Uint8Array, at: number): void {
    const { pieces } = this.#slots[i];
    let begin = 0;
    for (let n = 0; begin < to; n++) {
      const { off, size } = pieces[n];
      const first = Math.max(from, begin);
      const end = Math.min(to, begin + size);
      if (first < end) out.set(this.#u8.subarray(off + first - begin, off + end - begin), at + first - from);
      begin += size;
    }
  }

  /** True if nobody has written behind a piece. */
  get guardsIntact(): boolean {
    return this.#slots.every(({ pieces }) =>
      pieces.every(({ off, size }) =>
        this.#u8.subarray(off + size, off + size + GUARD_BYTES).every((byte) => byte === GUARD),
      ),
    );
  }
}

const NO_HEADER = new Uint8Array(VIRTIO_NET_HDR_MRG_RXBUF.size);

function encodeHeader(fields: Partial<NetHeader>): Uint8Array {
  const dv = new DataView(new ArrayBuffer(VIRTIO_NET_HDR_MRG_RXBUF.size));
  dv.setUint8(HDR.flags, fields.flags ?? 0);
  dv.setUint8(HDR.gso_type, fields.gsoType ?? 0);
  dv.setUint16(HDR.hdr_len, fields.hdrLen ?? 0, true);
  dv.setUint16(HDR.gso_size, fields.gsoSize ?? 0, true);
  dv.setUint16(HDR.csum_start, fields.csumStart ?? 0, true);
  dv.setUint16(HDR.csum_offset, fields.csumOffset ?? 0, true);
  dv.setUint16(HDR.num_buffers, fields.numBuffers ?? 0, true);
  return new Uint8Array(dv.buffer);
}

function decodeHeader(dv: DataView, headerLen: number): NetHeader {
  return {
    flags: dv.getUint8(HDR.flags),
    gsoType: dv.getUint8(HDR.gso_type),
    hdrLen: dv.getUint16(HDR.hdr_len, true),
    gsoSize: dv.getUint16(HDR.gso_size, true),
    csumStart: dv.getUint16(HDR.csum_start, true),
    csumOffset: dv.getUint16(HDR.csum_offset, true),
    numBuffers: headerLen === VIRTIO_NET_HDR_MRG_RXBUF.size ? dv.getUint16(HDR.num_buffers, true) : 1,
  };
}

function badDevice(problem: string): SwitchError {
  return new SwitchError('BAD_DEVICE', `the back end broke a ring: ${problem}`);
}

/** Frames to the device. Owns nothing: ring and memory are the caller's. */
export class TxQueue {
  readonly ring: DriverRing;
  readonly #slots: Slots;
  readonly #headerLen: number;
  readonly #maxFrame: number;

  constructor(ring: DriverRing, ram: GuestRam, headerLen: number, maxFrame: number, layout: ChainLayout) {
    this.ring = ring;
    this.#headerLen = headerLen;
    this.#maxFrame = maxFrame;
    this.#slots = new Slots(ring, ram, headerLen + maxFrame, headerLen, layout, false);
  }

  reset(): void {
    this.ring.reset();
    this.ring.disableCalls();
    this.#slots.reset();
  }

  /** Copies one frame into a buffer and adds it to the ring, unpublished. @returns false if the ring is full. */
  add(frame: Uint8Array, header?: Partial<NetHeader>): boolean {
    if (frame.length > this.#maxFrame)
      throw new RangeError(`frame of ${frame.length} bytes, maxFrame is ${this.#maxFrame}`);
    this.reapAll();
    const head = header ? encodeHeader(header) : NO_HEADER;
    return this.#slots.add(this.#headerLen + frame.length, (slot) => {
      this.#slots.scatter(slot, 0, head.subarray(0, this.#headerLen));
      this.#slots.scatter(slot, this.#headerLen, frame);
    });
  }

  /** Takes back every buffer that the device has read. @returns their number. */
  reapAll(): number {
    let n = 0;
    for (let id = this.ring.reap(); id >= 0; id = this.ring.reap(), n++) this.#slots.free(this.#slots.taken(id));
    if (this.ring.broken !== undefined) throw badDevice(this.ring.broken);
    return n;
  }

  get guardsIntact(): boolean {
    return this.#slots.guardsIntact;
  }
}

/** Frames from the device. Owns nothing: ring and memory are the caller's. */
export class RxQueue {
  readonly ring: DriverRing;
  /** The buffers' ids and bytes of that frame, in order. */
  readonly usedHeads: number[] = [];
  readonly usedLens: number[] = [];
  readonly #slots: Slots;
  readonly #headerLen: number;
  readonly #bufferBytes: number;
  readonly #mergeable: boolean;
  readonly #taken: number[] = [];
  /** the header of the frame that `take` returned last, as received */
  readonly #head = new Uint8Array(VIRTIO_NET_HDR_MRG_RXBUF.size);
  readonly #headView = new DataView(this.#head.buffer);

  /** `bufferBytes`: size of one buffer, the header's share included. `mergeable`: a frame may come in several. */
  constructor(
    ring: DriverRing,
    ram: GuestRam,
    headerLen: number,
    bufferBytes: number,
    mergeable: boolean,
    layout: ChainLayout,
  ) {
    this.ring = ring;
    this.#headerLen = headerLen;
    this.#bufferBytes = bufferBytes;
    this.#mergeable = mergeable;
    this.#slots = new Slots(ring, ram, bufferBytes, headerLen, layout, true);
  }

  reset(): void {
    this.ring.reset();
    this.ring.disableCalls();
    this.#slots.reset();
  }

  /** The header of the frame that `take` returned last. */
  get header(): NetHeader {
    return decodeHeader(this.#headView, this.#headerLen);
  }

  /** Gives the device every free buffer, unpublished. */
  fill(): void {
    while (this.#slots.add());
  }

  /**
   * The next received frame, copied out, or undefined. Its buffers go back into the ring, unpublished.
   * Throws SwitchError (BAD_DEVICE) where the device breaks a rule of §2.7, §2.8 or §5.1.6.4.
   */
  take(): Uint8Array | undefined {
    const first = this.#reap();
    if (first < 0) return undefined;
    this.#taken.length = this.usedHeads.length = this.usedLens.length = 0;
    let bytes = this.#keep(first) - this.#headerLen;
    if (bytes < 0) throw badDevice(`a used buffer of ${this.ring.usedLen} bytes holds no header`);
    this.#slots.gather(this.#taken[0], 0, this.#headerLen, this.#head, 0);
    // Without MRG_RXBUF drivers do not look at num_buffers; DPDK leaves it 0 then, where §5.1.6.4.1 demands 1.
    const numBuffers = this.#mergeable ? this.#headView.getUint16(HDR.num_buffers, true) : 1;
    if (numBuffers === 0) throw badDevice('a frame came in 0 buffers');
    for (let i = 1; i < numBuffers; i++) {
      const next = this.#reap();
      if (next < 0) throw badDevice(`only ${i} of a frame's ${numBuffers} buffers are used`);
      bytes += this.#keep(next);
    }
    return this.#copyOut(bytes);
  }

  #reap(): number {
    const id = this.ring.reap();
    if (this.ring.broken !== undefined) throw badDevice(this.ring.broken);
    return id;
  }

  #keep(id: number): number {
    const len = this.ring.usedLen;
    if (len > this.#bufferBytes) throw badDevice(`${len} bytes written to a buffer of ${this.#bufferBytes}`);
    this.#taken.push(this.#slots.taken(id));
    this.usedHeads.push(id);
    this.usedLens.push(len);
    return len;
  }

  #copyOut(bytes: number): Uint8Array {
    const frame = new Uint8Array(bytes);
    let at = 0;
    const taken = this.#taken;
    for (let i = 0; i < taken.length; i++) {
      const from = i === 0 ? this.#headerLen : 0;
      this.#slots.gather(taken[i], from, this.usedLens[i], frame, at);
      at += this.usedLens[i] - from;
      this.#slots.free(taken[i]);
      this.#slots.add();
    }
    return frame;
  }

  get guardsIntact(): boolean {
    return this.#slots.guardsIntact;
  }
}
