/**
 * Bytes of the FUSE protocol: a request taken apart with its sizes checked, and answers put together.
 * What requests mean is not known here.
 * @see linux/fuse.h
 */
import {
  CUSE_INIT_IN,
  CUSE_INIT_OUT,
  CUSE_UNRESTRICTED_IOCTL,
  FOPEN_NONSEEKABLE,
  FUSE_IN_HEADER,
  FUSE_IOCTL_IN,
  FUSE_IOCTL_IOVEC,
  FUSE_IOCTL_OUT,
  FUSE_IOCTL_RETRY,
  FUSE_KERNEL_VERSION,
  FUSE_NOTIFY_POLL,
  FUSE_NOTIFY_POLL_WAKEUP_OUT,
  FUSE_OPEN_OUT,
  FUSE_OUT_HEADER,
  FUSE_POLL_IN,
  FUSE_POLL_OUT,
  FUSE_READ_IN,
  FUSE_WRITE_IN,
  FUSE_WRITE_OUT,
} from '../uapi/fuse.ts';
import type { Layout } from '../uapi/layout.ts';

/** The newest minor version whose structs are known here; requests of later ones are only longer. */
export const SPOKEN_MINOR = 38;
/** Linux 3.1. Before it, pieces of the caller's memory were told in another form to 32-bit callers. */
export const LEAST_MINOR = 16;

/** A request whose header is sound. */
export interface FuseRequest {
  readonly opcode: number;
  /** what the answer names */
  readonly unique: bigint;
  /** the caller's thread in this process's PID namespace, 0 if it is in none that can be seen from here */
  readonly pid: number;
  /** what follows the header: bytes of its own, which nothing overwrites */
  readonly body: DataView;
}

const HEADER = FUSE_IN_HEADER.off;
const OUT = FUSE_OUT_HEADER.off;

/** The request that `bytes` are, or undefined if its header is cut off or tells another length. */
export function decodeRequest(bytes: Uint8Array): FuseRequest | undefined {
  if (bytes.length < FUSE_IN_HEADER.size) return undefined;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (view.getUint32(HEADER.len, true) !== bytes.length) return undefined;
  const body = bytes.slice(FUSE_IN_HEADER.size);
  return {
    opcode: view.getUint32(HEADER.opcode, true),
    unique: view.getBigUint64(HEADER.unique, true),
    pid: view.getUint32(HEADER.pid, true),
    body: new DataView(body.buffer),
  };
}

/** True if all of a struct is there; kernels of later versions may send more. */
export const holds = ({ body }: FuseRequest, { size }: Layout<string>): boolean => body.byteLength >= size;

/** The answer to request `unique`. @param error 0, or an errno, positive */
export function encodeAnswer(unique: bigint, error: number, body: Uint8Array = new Uint8Array(0)): Uint8Array {
  const bytes = new Uint8Array(FUSE_OUT_HEADER.size + body.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(OUT.len, bytes.length, true);
  view.setInt32(OUT.error, -error, true);
  view.setBigUint64(OUT.unique, unique, true);
  bytes.set(body, FUSE_OUT_HEADER.size);
  return bytes;
}

/** Tells the kernel that polls of handle `kh` may ask again. */
export function encodePollWakeup(kh: bigint): Uint8Array {
  const body = new DataView(new ArrayBuffer(FUSE_NOTIFY_POLL_WAKEUP_OUT.size));
  body.setBigUint64(FUSE_NOTIFY_POLL_WAKEUP_OUT.off.kh, kh, true);
  // a message that answers nothing has the code of the notification in place of an error
  return encodeAnswer(0n, -FUSE_NOTIFY_POLL, new Uint8Array(body.buffer));
}

/** What the kernel says of itself in CUSE_INIT. */
export interface KernelVersion {
  readonly major: number;
  readonly minor: number;
  readonly flags: number;
}

export function decodeInit({ body }: FuseRequest): KernelVersion {
  const { major, minor, flags } = CUSE_INIT_IN.off;
  return {
    major: body.getUint32(major, true),
    minor: body.getUint32(minor, true),
    flags: body.getUint32(flags, true),
  };
}

/** The number of a character device. */
export interface DeviceNumber {
  readonly major: number;
  readonly minor: number;
}

/** The kernel chooses. */
const ANY_NUMBER: DeviceNumber = { major: 0, minor: 0 };

/** The answer to CUSE_INIT: a device with ioctls that may ask for memory. */
export function encodeInit(kernelMinor: number, devName: string, maxBytes: number, number = ANY_NUMBER): Uint8Array {
  const info = Buffer.from(`DEVNAME=${devName}\0`);
  const bytes = new Uint8Array(CUSE_INIT_OUT.size + info.length);
  const view = new DataView(bytes.buffer);
  const { off } = CUSE_INIT_OUT;
  view.setUint32(off.major, FUSE_KERNEL_VERSION, true);
  view.setUint32(off.minor, Math.min(kernelMinor, SPOKEN_MINOR), true);
  view.setUint32(off.flags, CUSE_UNRESTRICTED_IOCTL, true);
  view.setUint32(off.max_read, maxBytes, true);
  view.setUint32(off.max_write, maxBytes, true);
  view.setUint32(off.dev_major, number.major, true);
  view.setUint32(off.dev_minor, number.minor, true);
  bytes.set(info, CUSE_INIT_OUT.size);
  return bytes;
}

export function encodeOpen(handle: bigint): Uint8Array {
  const view = new DataView(new ArrayBuffer(FUSE_OPEN_OUT.size));
  view.setBigUint64(FUSE_OPEN_OUT.off.fh, handle, true);
  view.setUint32(FUSE_OPEN_OUT.off.open_flags, FOPEN_NONSEEKABLE, true);
  return new Uint8Array(view.buffer);
}

/** An ioctl, and what was copied from the caller's memory for it. */
export interface IoctlCall {
  readonly flags: number;
  readonly cmd: number;
  /** the third argument: an address as a rule */
  readonly arg: bigint;
  readonly data: DataView;
  /** bytes of the caller's memory that the answer may fill */
  readonly outSize: number;
}

/** The ioctl, or undefined if the sizes in it do not agree. The struct itself is there. */
export function decodeIoctl({ body }: FuseRequest): IoctlCall | undefined {
  const { off, size } = FUSE_IOCTL_IN;
  const inSize = body.getUint32(off.in_size, true);
  if (body.byteLength !== size + inSize) return undefined;
  return {
    flags: body.getUint32(off.flags, true),
    cmd: body.getUint32(off.cmd, true),
    arg: body.getBigUint64(off.arg, true),
    data: new DataView(body.buffer, body.byteOffset + size, inSize),
    outSize: body.getUint32(off.out_size, true),
  };
}

/** An ioctl's result, and what goes to the caller's memory. */
export function encodeIoctl(result: number, data: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(FUSE_IOCTL_OUT.size + data.length);
  new DataView(bytes.buffer).setInt32(FUSE_IOCTL_OUT.off.result, result, true);
  bytes.set(data, FUSE_IOCTL_OUT.size);
  return bytes;
}

/** A piece of the caller's memory. */
export interface Piece {
  readonly base: bigint;
  /** bytes */
  readonly len: number;
}

/** Asks for the ioctl once more, with the bytes of `input`, and with `output` to be filled by its answer. */
export function encodeRetry(input: readonly Piece[], output: readonly Piece[]): Uint8Array {
  const { size, off } = FUSE_IOCTL_OUT;
  const bytes = new Uint8Array(size + (input.length + output.length) * FUSE_IOCTL_IOVEC.size);
  const view = new DataView(bytes.buffer);
  view.setUint32(off.flags, FUSE_IOCTL_RETRY, true);
  view.setUint32(off.in_iovs, input.length, true);
  view.setUint32(off.out_iovs, output.length, true);
  for (const [i, { base, len }] of [...input, ...output].entries()) {
    const at = size + i * FUSE_IOCTL_IOVEC.size;
    view.setBigUint64(at + FUSE_IOCTL_IOVEC.off.base, base, true);
    view.setBigUint64(at + FUSE_IOCTL_IOVEC.off.len, BigInt(len), true);
  }
  return bytes;
}

/** The open file that a request is about, for all that name one: it comes first in each of their structs. */
export const handleOf = ({ body }: FuseRequest): bigint => body.getBigUint64(0, true);

/** Bytes that READ asks for. */
export const decodeRead = ({ body }: FuseRequest): number => body.getUint32(FUSE_READ_IN.off.size, true);

/** The bytes that WRITE brings, or undefined if there are not as many as it says. */
export function decodeWrite({ body }: FuseRequest): DataView | undefined {
  const size = body.getUint32(FUSE_WRITE_IN.off.size, true);
  if (body.byteLength !== FUSE_WRITE_IN.size + size) return undefined;
  return new DataView(body.buffer, body.byteOffset + FUSE_WRITE_IN.size, size);
}

export function encodeWrite(taken: number): Uint8Array {
  const view = new DataView(new ArrayBuffer(FUSE_WRITE_OUT.size));
  view.setUint32(FUSE_WRITE_OUT.off.size, taken, true);
  return new Uint8Array(view.buffer);
}

/** What POLL asks: the kernel's name for the poll, and whether to tell it of changes. */
export function decodePoll({ body }: FuseRequest): { kh: bigint; flags: number } {
  const { kh, flags } = FUSE_POLL_IN.off;
  return { kh: body.getBigUint64(kh, true), flags: body.getUint32(flags, true) };
}

export function encodePoll(events: number): Uint8Array {
  const view = new DataView(new ArrayBuffer(FUSE_POLL_OUT.size));
  view.setUint32(FUSE_POLL_OUT.off.revents, events, true);
  return new Uint8Array(view.buffer);
}
