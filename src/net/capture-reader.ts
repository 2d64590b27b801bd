/**
 * Reads capture files, pcap and pcapng, in bounded memory: the file comes through a buffer piece by piece, and every frame is
 * whole in it when `next` says so. Nothing is allocated per frame, and nothing is thrown: a broken file is a fault with a number.
 *
 * The buffer may lie in a window: then the frames are where a burst can point to. Only Ethernet captures are read.
 * @see draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng
 */
import { readSync } from 'node:fs';
import { SwitchError } from '../errors.ts';
import {
  CAPTURE_FAULT,
  describeCaptureFault,
  MAX_BLOCK,
  MAX_CAPTURED,
  MAX_INTERFACES,
  MAX_PASSED_BLOCK,
} from './capture-fault.ts';
import {
  BLOCK_BYTES,
  BLOCK_ENHANCED_PACKET,
  BLOCK_INTERFACE,
  BLOCK_PACKET,
  BLOCK_SECTION,
  BLOCK_SIMPLE_PACKET,
  BYTE_ORDER_MAGIC,
  type CaptureTime,
  ENHANCED_PACKET_BYTES,
  ENHANCED_PACKET_DATA,
  INTERFACE_BYTES,
  LINK_ETHERNET,
  OPTION_END,
  OPTION_IF_TSOFFSET,
  OPTION_IF_TSRESOL,
  PCAP_HEADER_BYTES,
  PCAP_MICROSECONDS,
  PCAP_MODIFIED,
  PCAP_NANOSECONDS,
  PCAP_RECORD_BYTES,
  padded,
  SECTION_BYTES,
  SIMPLE_PACKET_BYTES,
  SIMPLE_PACKET_DATA,
  unitsPerSecond,
} from './capture-format.ts';

/** What `next` says: a frame is there; `fill` first; the file is at its end; it has a fault. */
export const READ_FRAME = 1;
export const READ_FILL = 0;
export const READ_END = -1;
export const READ_FAULT = -2;
/** Within: something has been read that is no frame. */
const READ_ON = 2;

/** The smallest buffer that a reader takes: the largest block it looks into, and the header of the next. */
export const MIN_READ_BUFFER = MAX_BLOCK + 64;

/** Memory that a file is read into, or written from: `bytes` from `off` on in both views. */
export interface CaptureBuffer {
  readonly u8: Uint8Array;
  readonly dv: DataView;
  readonly off: number;
  readonly bytes: number;
}

/** A buffer of its own, for use off the packet path. */
export function captureBuffer(bytes = MIN_READ_BUFFER): CaptureBuffer {
  const u8 = new Uint8Array(bytes);
  return { u8, dv: new DataView(u8.buffer), off: 0, bytes };
}

const NO_KIND = 0;
const PCAP = 1;
const PCAPNG = 2;

export class CaptureReader {
  /** the frame: where it begins in the buffer's views, and how many of its bytes are there */
  off = 0;
  len = 0;
  /** bytes that the frame had when it was captured */
  wireLen = 0;
  /** one of CAPTURE_FAULT; where in the file, bytes, and what was found there */
  fault = CAPTURE_FAULT.none;
  faultAt = 0;
  faultFound = 0;
  readonly #fd: number;
  readonly #buffer: CaptureBuffer;
  /** what is yet to be read: from here to there in the buffer, the latter being byte #endInFile of the file */
  #at: number;
  #end: number;
  #endInFile = 0;
  #wholeFile = false;
  #kind = NO_KIND;
  #little = true;
  /** of a block that is passed over: bytes still before its trailer, and what the trailer has to say */
  #pass = 0;
  #trailer = 0;
  /** the frame's time as the file has it, and its interface */
  #timeHi = 0;
  #timeLo = 0;
  #timeOf = 0;
  /** pcap: ns in a unit of the fraction */
  #nsPerUnit = 1;
  /** pcapng, by interface */
  #interfaces = 0;
  readonly #linkType = new Int32Array(MAX_INTERFACES);
  readonly #snapLen = new Float64Array(MAX_INTERFACES);
  readonly #units = new Float64Array(MAX_INTERFACES);
  readonly #offset = new Float64Array(MAX_INTERFACES);

  /** @param fd a regular file, which stays the caller's; read by position, its own is left alone */
  constructor(fd: number, buffer: CaptureBuffer) {
    if (buffer.bytes < MIN_READ_BUFFER) throw new RangeError(`a buffer of ${buffer.bytes} bytes is too small`);
    this.#fd = fd;
    this.#buffer = buffer;
    this.#at = buffer.off;
    this.#end = buffer.off;
  }

  /** Begins anew at the first byte of the file; what earlier frames lie in is written over by the next `fill`. */
  rewind(): void {
    this.#at = this.#buffer.off;
    this.#end = this.#buffer.off;
    this.#endInFile = 0;
    this.#wholeFile = false;
    this.#kind = NO_KIND;
    this.#pass = 0;
    this.#trailer = 0;
    this.#interfaces = 0;
    this.fault = CAPTURE_FAULT.none;
  }

  /** Goes to the next frame that is whole in the buffer. Does not read the file. @returns READ_… */
  next(): number {
    if (this.fault !== CAPTURE_FAULT.none) return READ_FAULT;
    for (;;) {
      const said = this.#step();
      if (said !== READ_ON) return said;
    }
  }

  /** As `next`, and reads the file where that is needed. */
  nextFilled(): number {
    for (;;) {
      const said = this.next();
      if (said !== READ_FILL) return said;
      this.fill();
    }
  }

  #step(): number {
    if (this.#trailer !== 0) return this.#passOver();
    if (this.#kind === PCAPNG) return this.#block();
    return this.#kind === PCAP ? this.#record() : this.#beginFile();
  }

  /** Reads on, after `next` has said READ_FILL. The frames before have moved or are gone. */
  fill(): void {
    const { u8, off, bytes } = this.#buffer;
    const left = this.#end - this.#at;
    u8.copyWithin(off, this.#at, this.#end);
    this.#at = off;
    this.#end = off + left;
    // What is to be passed over need not be read, where nothing of it is in the buffer yet.
    if (left === 0 && this.#pass > 0) {
      this.#endInFile += this.#pass;
      this.#pass = 0;
    }
    try {
      const n = readSync(this.#fd, u8, this.#end, bytes - left, this.#endInFile);
      if (n === 0) this.#wholeFile = true;
      this.#end += n;
      this.#endInFile += n;
    } catch (error) {
      this.#setFault(CAPTURE_FAULT.read, 0, Math.abs((error as NodeJS.ErrnoException).errno ?? 5));
    }
  }

  /** The time of the frame that `next` has found. One in a simple packet block has none: 0. */
  readTime(time: CaptureTime): void {
    if (this.#kind === PCAP) {
      time.setParts(this.#timeHi, this.#timeLo, this.#nsPerUnit);
      return;
    }
    time.setUnits(this.#timeHi, this.#timeLo, this.#units[this.#timeOf]);
    time.sec += this.#offset[this.#timeOf];
  }

  /** The sentence for the fault. */
  describe(path: string): string {
    return describeCaptureFault(path, this.fault, this.faultAt, this.faultFound);
  }

  /** Throws SwitchError for the fault. */
  throwFault(path: string): never {
    throw new SwitchError('BAD_CAPTURE', this.describe(path));
  }

  /** @param at bytes behind the beginning of what is being read */
  #setFault(fault: number, at: number, found: number): number {
    this.fault = fault;
    this.faultAt = this.#endInFile - (this.#end - this.#at) + at;
    this.faultFound = found;
    return READ_FAULT;
  }

  /** More is needed than the buffer has from #at on. */
  #needMore(): number {
    if (!this.#wholeFile) return READ_FILL;
    const left = this.#end - this.#at;
    if (left === 0 && this.#trailer === 0 && this.#kind !== NO_KIND) return READ_END;
    return this.#setFault(CAPTURE_FAULT.truncated, 0, left);
  }

  #beginFile(): number {
    const { dv } = this.#buffer;
    const at = this.#at;
    const left = this.#end - at;
    if (left < 4) return this.#needMore();
    const magic = dv.getUint32(at, true);
    if (magic === BLOCK_SECTION) {
      this.#kind = PCAPNG;
      return READ_ON;
    }
    const swapped = dv.getUint32(at);
    this.#little = magic === PCAP_MICROSECONDS || magic === PCAP_NANOSECONDS;
    const native = this.#little ? magic : swapped;
    if (magic === PCAP_MODIFIED || swapped === PCAP_MODIFIED) return this.#setFault(CAPTURE_FAULT.modified, 0, magic);
    if (native !== PCAP_MICROSECONDS && native !== PCAP_NANOSECONDS)
      return this.#setFault(CAPTURE_FAULT.magic, 0, swapped);
    if (left < PCAP_HEADER_BYTES) return this.#needMore();
    this.#nsPerUnit = native === PCAP_NANOSECONDS ? 1 : 1000;
    const major = dv.getUint16(at + 4, this.#little);
    const minor = dv.getUint16(at + 6, this.#little);
    if (major !== 2 || minor !== 4) return this.#setFault(CAPTURE_FAULT.version, 4, (major << 16) | minor);
    // the upper half may tell of frame check sequences
    const link = dv.getUint32(at + 20, this.#little) & 0xffff;
    if (link !== LINK_ETHERNET) return this.#setFault(CAPTURE_FAULT.link_type, 20, link);
    this.#kind = PCAP;
    this.#at = at + PCAP_HEADER_BYTES;
    return READ_ON;
  }

  /** pcap: a frame. */
  #record(): number {
    const { dv } = this.#buffer;
    const at = this.#at;
    const left = this.#end - at;
    if (left < PCAP_RECORD_BYTES) return this.#needMore();
    const little = this.#little;
    const len = dv.getUint32(at + 8, little);
    if (len > MAX_CAPTURED) return this.#setFault(CAPTURE_FAULT.too_long, 8, len);
    if (left < PCAP_RECORD_BYTES + len) return this.#needMore();
    this.#timeHi = dv.getUint32(at, little);
    this.#timeLo = dv.getUint32(at + 4, little);
    return this.#frame(at + PCAP_RECORD_BYTES, len, dv.getUint32(at + 12, little), PCAP_RECORD_BYTES + len);
  }

  /** A frame is there, in `bytes` bytes of the file. */
  #frame(off: number, len: number, wireLen: number, bytes: number): number {
    this.off = off;
    this.len = len;
    this.wireLen = wireLen;
    this.#at += bytes;
    return READ_FRAME;
  }

  /** pcapng: a block of any kind. */
  #block(): number {
    const { dv } = this.#buffer;
    const at = this.#at;
    const left = this.#end - at;
    if (left < BLOCK_BYTES) return this.#needMore();
    const type = dv.getUint32(at, this.#little);
    if (type === BLOCK_SECTION) {
      const magic = dv.getUint32(at + 8, true);
      this.#little = magic === BYTE_ORDER_MAGIC;
      if (!this.#little && dv.getUint32(at + 8) !== BYTE_ORDER_MAGIC)
        return this.#setFault(CAPTURE_FAULT.byte_order, 8, dv.getUint32(at + 8));
    }
    const bytes = dv.getUint32(at + 4, this.#little);
    const least = leastBytes(type);
    const most = least === BLOCK_BYTES ? MAX_PASSED_BLOCK : MAX_BLOCK;
    if (bytes < least || bytes > most || (bytes & 3) !== 0) return this.#setFault(CAPTURE_FAULT.block_length, 4, bytes);
    if (least === BLOCK_BYTES) {
      this.#trailer = bytes;
      this.#pass = bytes - 4;
      return READ_ON;
    }
    if (left < bytes) return this.#needMore();
    const trailer = dv.getUint32(at + bytes - 4, this.#little);
    if (trailer !== bytes) return this.#setFault(CAPTURE_FAULT.trailer, bytes - 4, trailer);
    if (type === BLOCK_SECTION) return this.#section(at, bytes);
    if (type === BLOCK_INTERFACE) return this.#interface(at, bytes);
    return type === BLOCK_SIMPLE_PACKET ? this.#simplePacket(at, bytes) : this.#packet(at, bytes, type);
  }

  /** A block whose kind is unknown goes by; its trailer has to be right. */
  #passOver(): number {
    const n = Math.min(this.#pass, this.#end - this.#at);
    this.#at += n;
    this.#pass -= n;
    if (this.#pass > 0 || this.#end - this.#at < 4) return this.#needMore();
    const trailer = this.#buffer.dv.getUint32(this.#at, this.#little);
    if (trailer !== this.#trailer) return this.#setFault(CAPTURE_FAULT.trailer, 0, trailer);
    this.#at += 4;
    this.#trailer = 0;
    return READ_ON;
  }

  #section(at: number, bytes: number): number {
    const { dv } = this.#buffer;
    const major = dv.getUint16(at + 12, this.#little);
    const minor = dv.getUint16(at + 14, this.#little);
    if (major !== 1) return this.#setFault(CAPTURE_FAULT.version, 12, (major << 16) | minor);
    this.#interfaces = 0;
    this.#at += bytes;
    return READ_ON;
  }

  #interface(at: number, bytes: number): number {
    const { dv } = this.#buffer;
    const little = this.#little;
    const n = this.#interfaces;
    if (n === MAX_INTERFACES) return this.#setFault(CAPTURE_FAULT.interfaces, 0, n);
    this.#linkType[n] = dv.getUint16(at + 8, little);
    this.#snapLen[n] = dv.getUint32(at + 12, little) || MAX_CAPTURED;
    this.#units[n] = 1e6;
    this.#offset[n] = 0;
    const end = bytes - 4;
    for (let o = 16; o < end; ) {
      if (o + 4 > end) return this.#setFault(CAPTURE_FAULT.options, o, end - o);
      const code = dv.getUint16(at + o, little);
      const len = dv.getUint16(at + o + 2, little);
      if (code === OPTION_END) break;
      if (o + 4 + padded(len) > end) return this.#setFault(CAPTURE_FAULT.options, o, len);
      if (code === OPTION_IF_TSRESOL) {
        const resolution = len === 1 ? dv.getUint8(at + o + 4) : 0xff;
        this.#units[n] = unitsPerSecond(resolution);
        if (this.#units[n] === 0) return this.#setFault(CAPTURE_FAULT.resolution, o, resolution);
      } else if (code === OPTION_IF_TSOFFSET) {
        if (len !== 8) return this.#setFault(CAPTURE_FAULT.options, o, len);
        this.#offset[n] = Number(dv.getBigInt64(at + o + 4, little));
      }
      o += 4 + padded(len);
    }
    this.#interfaces++;
    this.#at += bytes;
    return READ_ON;
  }

  /** A packet block, of today's kind or of the older. */
  #packet(at: number, bytes: number, type: number): number {
    const { dv } = this.#buffer;
    const little = this.#little;
    const from = type === BLOCK_PACKET ? dv.getUint16(at + 8, little) : dv.getUint32(at + 8, little);
    if (from >= this.#interfaces) return this.#setFault(CAPTURE_FAULT.interface, 8, from);
    if (this.#linkType[from] !== LINK_ETHERNET) return this.#setFault(CAPTURE_FAULT.link_type, 8, this.#linkType[from]);
    const len = dv.getUint32(at + 20, little);
    if (len > MAX_CAPTURED) return this.#setFault(CAPTURE_FAULT.too_long, 20, len);
    if (padded(len) > bytes - ENHANCED_PACKET_BYTES) return this.#setFault(CAPTURE_FAULT.frame_length, 20, len);
    this.#timeOf = from;
    this.#timeHi = dv.getUint32(at + 12, little);
    this.#timeLo = dv.getUint32(at + 16, little);
    return this.#frame(at + ENHANCED_PACKET_DATA, len, dv.getUint32(at + 24, little), bytes);
  }

  #simplePacket(at: number, bytes: number): number {
    if (this.#interfaces === 0) return this.#setFault(CAPTURE_FAULT.interface, 0, 0);
    if (this.#linkType[0] !== LINK_ETHERNET) return this.#setFault(CAPTURE_FAULT.link_type, 0, this.#linkType[0]);
    const wireLen = this.#buffer.dv.getUint32(at + 8, this.#little);
    const len = Math.min(wireLen, this.#snapLen[0]);
    if (len > MAX_CAPTURED) return this.#setFault(CAPTURE_FAULT.too_long, 8, len);
    if (padded(len) > bytes - SIMPLE_PACKET_BYTES) return this.#setFault(CAPTURE_FAULT.frame_length, 8, len);
    this.#timeOf = 0;
    this.#timeHi = 0;
    this.#timeLo = 0;
    return this.#frame(at + SIMPLE_PACKET_DATA, len, wireLen, bytes);
  }
}

/** The least bytes of a block: BLOCK_BYTES for those that are passed over. */
function leastBytes(type: number): number {
  switch (type) {
    case BLOCK_SECTION:
      return SECTION_BYTES;
    case BLOCK_INTERFACE:
      return INTERFACE_BYTES;
    case BLOCK_PACKET:
    case BLOCK_ENHANCED_PACKET:
      return ENHANCED_PACKET_BYTES;
    case BLOCK_SIMPLE_PACKET:
      return SIMPLE_PACKET_BYTES;
    default:
      return BLOCK_BYTES;
  }
}
