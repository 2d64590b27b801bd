/**
 * Writes capture files: pcapng and pcap, both with nanoseconds. Records gather in a buffer, which goes to the file in one piece,
 * so that several threads may append to one file: what each writes begins and ends with a record.
 * @see draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng
 */
import { writeSync } from 'node:fs';
import { MAX_CAPTURED } from './capture-fault.ts';
import {
  BLOCK_ENHANCED_PACKET,
  BLOCK_INTERFACE,
  BLOCK_SECTION,
  BYTE_ORDER_MAGIC,
  ENHANCED_PACKET_BYTES,
  ENHANCED_PACKET_DATA,
  INTERFACE_BYTES,
  LINK_ETHERNET,
  NanosecondStamp,
  OPTION_END,
  OPTION_IF_NAME,
  OPTION_IF_TSRESOL,
  OPTION_USER_APPLICATION,
  PCAP_HEADER_BYTES,
  PCAP_NANOSECONDS,
  PCAP_RECORD_BYTES,
  padded,
  SECTION_BYTES,
} from './capture-format.ts';
import type { CaptureBuffer } from './capture-reader.ts';

export type CaptureFormat = 'pcapng' | 'pcap';

/** In place of an offset: the frame has to wait until the buffer is flushed, or is larger than it. */
export const NO_ROOM = -1;

/** if_tsresol: 10⁻⁹ s. */
const NANOSECONDS = 9;

/** An option of pcapng, padded. */
function option(code: number, value: Uint8Array): Buffer {
  const bytes = Buffer.alloc(4 + padded(value.length));
  bytes.writeUInt16LE(code, 0);
  bytes.writeUInt16LE(value.length, 2);
  bytes.set(value, 4);
  return bytes;
}

/** A block of pcapng: `fixed` bytes of fields, which `fill` writes, then options. */
function block(type: number, fixed: number, options: readonly Buffer[], fill: (bytes: Buffer) => void): Buffer {
  const all = [...options, option(OPTION_END, new Uint8Array(0))];
  const size = fixed + all.reduce((sum, { length }) => sum + length, 0);
  const bytes = Buffer.alloc(size);
  bytes.writeUInt32LE(type, 0);
  bytes.writeUInt32LE(size, 4);
  bytes.writeUInt32LE(size, size - 4);
  fill(bytes);
  let at = fixed - 4;
  for (const one of all) {
    bytes.set(one, at);
    at += one.length;
  }
  return bytes;
}

/** What a capture file begins with. @param names of the interfaces, for pcapng, which has a place for them; at least one */
export function captureHeader(format: CaptureFormat, ...names: readonly string[]): Buffer {
  if (format === 'pcap') {
    const bytes = Buffer.alloc(PCAP_HEADER_BYTES);
    bytes.writeUInt32LE(PCAP_NANOSECONDS, 0);
    bytes.writeUInt16LE(2, 4);
    bytes.writeUInt16LE(4, 6);
    bytes.writeUInt32LE(MAX_CAPTURED, 16);
    bytes.writeUInt32LE(LINK_ETHERNET, 20);
    return bytes;
  }
  const section = block(
    BLOCK_SECTION,
    SECTION_BYTES,
    [option(OPTION_USER_APPLICATION, Buffer.from('vhost-switch'))],
    (bytes) => {
      bytes.writeUInt32LE(BYTE_ORDER_MAGIC, 8);
      bytes.writeUInt16LE(1, 12);
      bytes.writeBigInt64LE(-1n, 16);
    },
  );
  return Buffer.concat([section, ...names.map(describeInterface)]);
}

function describeInterface(name: string): Buffer {
  return block(
    BLOCK_INTERFACE,
    INTERFACE_BYTES,
    [
      option(OPTION_IF_NAME, Buffer.from(name).subarray(0, 1024)),
      option(OPTION_IF_TSRESOL, Uint8Array.of(NANOSECONDS)),
    ],
    (bytes) => {
      bytes.writeUInt16LE(LINK_ETHERNET, 8);
      bytes.writeUInt32LE(MAX_CAPTURED, 12);
    },
  );
}

/** Appends all of `bytes` at the end of the file, or throws what write says. */
export function writeAll(fd: number, bytes: Uint8Array, from = 0, end = bytes.length): void {
  for (let at = from; at < end; ) at += writeSync(fd, bytes, at, end - at);
}

/** One thread's way into a capture file whose header is there. Nothing is allocated per frame. */
export class CaptureWriter {
  /** Frames whose records have gone to the file, and their bytes. */
  written = 0;
  /** The errno of the write that failed, or 0: then nothing more is taken. */
  failed = 0;
  readonly #fd: number;
  readonly #pcapng: boolean;
  readonly #buffer: CaptureBuffer;
  readonly #interface: number;
  /** the end of what the buffer holds, an offset in its views */
  #end: number;
  #frames = 0;
  readonly #stamp = new NanosecondStamp();
  /** pcapng: a number of 64 bits; pcap: seconds and nanoseconds */
  #timeHi = 0;
  #timeLo = 0;

  /** @param fd opened for appending; it stays the caller's. @param from which of the header's interfaces frames are of */
  constructor(fd: number, format: CaptureFormat, buffer: CaptureBuffer, from = 0) {
    this.#fd = fd;
    this.#pcapng = format === 'pcapng';
    this.#buffer = buffer;
    this.#interface = from;
    this.#end = buffer.off;
  }

  /** Bytes that wait to be written. */
  get held(): number {
    return this.#end - this.#buffer.off;
  }

  /** The time of the frames from now on, since 1970. */
  setTime(sec: number, nsec: number): void {
    // as words: records are made faster of those
    if (this.#pcapng) {
      this.#stamp.set(sec, nsec);
      this.#timeHi = this.#stamp.hi | 0;
      this.#timeLo = this.#stamp.lo | 0;
    } else {
      this.#timeHi = sec | 0;
      this.#timeLo = nsec | 0;
    }
  }

  /**
   * Makes a record for a frame of `wireLen` bytes, of which `len` are kept. @returns where in the buffer's views the caller puts these
   * bytes before the next `flush`; or NO_ROOM
   */
  begin(len: number, wireLen = len): number {
    const { dv, off, bytes } = this.#buffer;
    const at = this.#end;
    const size = this.#pcapng ? ENHANCED_PACKET_BYTES + padded(len) : PCAP_RECORD_BYTES + len;
    if (at + size > off + bytes || len > MAX_CAPTURED) return NO_ROOM;
    this.#end = at + size;
    this.#frames++;
    if (!this.#pcapng) {
      dv.setInt32(at, this.#timeHi, true);
      dv.setInt32(at + 4, this.#timeLo, true);
      dv.setInt32(at + 8, len, true);
      dv.setUint32(at + 12, wireLen, true);
      return at + PCAP_RECORD_BYTES;
    }
    // the padding, which has to be zero, is in this word; of an empty frame it is the last field, written below
    dv.setInt32(at + size - 8, 0, true);
    dv.setInt32(at, BLOCK_ENHANCED_PACKET, true);
    dv.setInt32(at + 4, size, true);
    dv.setInt32(at + 8, this.#interface, true);
    dv.setInt32(at + 12, this.#timeHi, true);
    dv.setInt32(at + 16, this.#timeLo, true);
    dv.setInt32(at + 20, len, true);
    dv.setUint32(at + 24, wireLen, true);
    dv.setInt32(at + size - 4, size, true);
    return at + ENHANCED_PACKET_DATA;
  }

  /** Writes what is held. @returns false if the file does not take it: `failed` says why, and what was held is lost */
  flush(): boolean {
    const { u8, off } = this.#buffer;
    if (this.failed !== 0) return false;
    try {
      writeAll(this.#fd, u8, off, this.#end);
      this.written += this.#frames;
    } catch (error) {
      this.failed = Math.abs((error as NodeJS.ErrnoException).errno ?? 5);
    }
    this.#end = off;
    this.#frames = 0;
    return this.failed === 0;
  }

  /** Adds a whole frame that lies in one piece, flushing where needed: off the packet path. @returns false as `flush` does */
  add(frame: Uint8Array, sec: number, nsec: number, wireLen = frame.length): boolean {
    this.setTime(sec, nsec);
    let at = this.begin(frame.length, wireLen);
    if (at === NO_ROOM) {
      if (!this.flush()) return false;
      at = this.begin(frame.length, wireLen);
      if (at === NO_ROOM) throw new RangeError(`a frame of ${frame.length} bytes is too long for the buffer`);
    }
    this.#buffer.u8.set(frame, at);
    return true;
  }
}
