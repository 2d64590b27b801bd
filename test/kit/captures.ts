/**
 * Capture files made and read by plain arithmetic: nothing here is shared with `src/net`.
 */
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** A frame and when it came, ns since 1970. */
export interface Captured {
  readonly bytes: Uint8Array;
  readonly ns: bigint;
  readonly wireLen?: number;
}

/** Writes numbers in one byte order. */
export class Numbers {
  readonly little: boolean;

  constructor(little: boolean) {
    this.little = little;
  }

  u16(...values: readonly number[]): Buffer {
    const bytes = Buffer.alloc(2 * values.length);
    for (const [i, value] of values.entries())
      if (this.little) bytes.writeUInt16LE(value, 2 * i);
      else bytes.writeUInt16BE(value, 2 * i);
    return bytes;
  }

  u32(...values: readonly number[]): Buffer {
    const bytes = Buffer.alloc(4 * values.length);
    for (const [i, value] of values.entries())
      if (this.little) bytes.writeUInt32LE(value, 4 * i);
      else bytes.writeUInt32BE(value, 4 * i);
    return bytes;
  }

  u64(value: bigint): Buffer {
    const [hi, lo] = [Number((value >> 32n) & 0xffffffffn), Number(value & 0xffffffffn)];
    return this.little ? this.u32(lo, hi) : this.u32(hi, lo);
  }

  /** A block of pcapng. */
  block(type: number, ...parts: readonly Uint8Array[]): Buffer {
    const body = pad(Buffer.concat(parts));
    const size = this.u32(12 + body.length);
    return Buffer.concat([this.u32(type), size, body, size]);
  }

  option(code: number, value: Uint8Array): Buffer {
    return Buffer.concat([this.u16(code, value.length), pad(value)]);
  }

  section(...options: readonly Buffer[]): Buffer {
    return this.block(0x0a0d0d0a, this.u32(0x1a2b3c4d), this.u16(1, 0), this.u64(0xffffffffffffffffn), ...options);
  }

  interface(link = 1, snapLen = 0, ...options: readonly Buffer[]): Buffer {
    return this.block(1, this.u16(link, 0), this.u32(snapLen), ...options);
  }

  enhanced(
    from: number,
    units: bigint,
    { bytes, wireLen = bytes.length }: Omit<Captured, 'ns'>,
    ...options: readonly Buffer[]
  ): Buffer {
    const [hi, lo] = [Number(units >> 32n), Number(units & 0xffffffffn)];
    return this.block(6, this.u32(from, hi, lo, bytes.length, wireLen), pad(bytes), ...options);
  }

  pcap(magic: number, frames: readonly Captured[], link = 1): Buffer {
    const perUnit = magic === 0xa1b23c4d ? 1n : 1000n;
    const records = frames.flatMap(({ bytes, ns, wireLen = bytes.length }) => [
      this.u32(Number(ns / 1_000_000_000n), Number((ns % 1_000_000_000n) / perUnit), bytes.length, wireLen),
      bytes,
    ]);
    return Buffer.concat([this.u32(magic), this.u16(2, 4), this.u32(0, 0, 65535, link), ...records]);
  }
}

function pad(bytes: Uint8Array): Buffer {
  return Buffer.concat([bytes, Buffer.alloc(-bytes.length & 3)]);
}

/** A folder of its own for files, removed by `close`. */
export class Folder {
  readonly path = mkdtempSync(join(tmpdir(), `vhost-switch-capture-${process.pid}-`));

  file(name: string, bytes?: Uint8Array): string {
    const path = join(this.path, name);
    if (bytes !== undefined) writeFileSync(path, bytes);
    return path;
  }

  close(): void {
    rmSync(this.path, { recursive: true });
  }
}

/** Opens a file for as long as `use` takes. */
export function withFile<T>(path: string, flags: string, use: (fd: number) => T): T {
  const fd = openSync(path, flags);
  try {
    return use(fd);
  } finally {
    closeSync(fd);
  }
}

/** Reads a little-endian file with nanoseconds and one interface, as this program writes them; throws where it is otherwise. */
export function readCapture(path: string): { bytes: Buffer; ns: bigint; wireLen: number }[] {
  const file = readFileSync(path);
  const got: { bytes: Buffer; ns: bigint; wireLen: number }[] = [];
  const add = (at: number, ns: bigint, header: number) => {
    const len = file.readUInt32LE(header);
    if (at + len > file.length) throw new Error(`${path}: a frame beyond the end`);
    got.push({ bytes: file.subarray(at, at + len), ns, wireLen: file.readUInt32LE(header + 4) });
    return len;
  };
  if (file.readUInt32LE(0) === 0xa1b23c4d || file.readUInt32LE(0) === 0xa1b2c3d4) {
    for (let at = 24; at < file.length; ) {
      const ns = BigInt(file.readUInt32LE(at)) * 1_000_000_000n + BigInt(file.readUInt32LE(at + 4));
      at += 16 + add(at + 16, ns, at + 8);
    }
    return got;
  }
  if (file.readUInt32LE(0) !== 0x0a0d0d0a) throw new Error(`${path}: no capture file`);
  for (let at = 0; at < file.length; ) {
    const size = file.readUInt32LE(at + 4);
    if (size < 12 || file.readUInt32LE(at + size - 4) !== size) throw new Error(`${path}: byte ${at}: no block`);
    const ns = size < 20 ? 0n : (BigInt(file.readUInt32LE(at + 12)) << 32n) | BigInt(file.readUInt32LE(at + 16));
    if (file.readUInt32LE(at) === 6) add(at + 28, ns, at + 20);
    at += size;
  }
  return got;
}
