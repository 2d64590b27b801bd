/**
 * Bytes of vhost-user messages: the header, and one codec for every kind of payload.
 * Knows sizes and layouts only; whether the numbers make sense is the back end's business.
 * @see QEMU docs/interop/vhost-user.rst "Header", "Payload"
 */
import { ProtocolError } from '../errors.ts';
import type { Layout } from '../uapi/layout.ts';
import {
  requestName,
  VHOST_MEM_REG,
  VHOST_MEMORY,
  VHOST_MEMORY_REGION,
  VHOST_USER_HEADER,
  VHOST_USER_MAX_REGIONS,
  VHOST_VRING_ADDR,
  VHOST_VRING_F_LOG,
  VHOST_VRING_STATE,
} from '../uapi/vhost-user.ts';
import type { VringAddresses } from '../vhost/vhost-device.ts';

/** What can be wrong with a message; the `code` of a ProtocolError thrown in this folder. */
export type MessageErrorCode =
  | 'PROTOCOL_HEADER'
  | 'PROTOCOL_PAYLOAD_SIZE'
  | 'PROTOCOL_ADDRESS'
  | 'PROTOCOL_VALUE'
  | 'PROTOCOL_VRING_INDEX'
  | 'PROTOCOL_FEATURES'
  | 'PROTOCOL_MEMORY'
  | 'PROTOCOL_FD_COUNT'
  | 'PROTOCOL_FD_KIND'
  | 'PROTOCOL_NOT_SUPPORTED'
  | 'PROTOCOL_TRUNCATED'
  | 'PROTOCOL_UNREAD_ANSWERS'
  | 'PROTOCOL_REPLY';

/** What an error is about: the number of a front end's request, or the name of another message. */
export type Subject = number | string;

const subjectName = (subject: Subject) => (typeof subject === 'string' ? subject : requestName(subject));

/** A ProtocolError about `subject`. */
export function protocolError(code: MessageErrorCode, subject: Subject, problem: string): ProtocolError {
  return new ProtocolError(code, subjectName(subject), problem);
}

/** An error that costs the connection although the front end asks for an acknowledgement, as the specification wants it. */
export class ClosingError extends ProtocolError {
  constructor(code: MessageErrorCode, subject: Subject, problem: string) {
    super(code, subjectName(subject), problem);
  }
}

/** One message: header fields, payload and the descriptors that came with it. Whoever holds it owns `fds`. */
export interface Message {
  readonly request: number;
  readonly flags: number;
  /** exactly the payload, `byteLength` = the header's size; valid until the message has been handled */
  readonly payload: DataView;
  readonly fds: number[];
}

/** The 12 bytes before every payload. */
export interface Header {
  readonly request: number;
  readonly flags: number;
  /** bytes of payload */
  readonly size: number;
}

const HEADER = VHOST_USER_HEADER.off;

/** Reads the header at the start of `view`, which holds at least 12 bytes. */
export function decodeHeader(view: DataView): Header {
  return {
    request: view.getUint32(HEADER.request, true),
    flags: view.getUint32(HEADER.flags, true),
    size: view.getUint32(HEADER.size, true),
  };
}

/** The whole message: header, then `payload`. */
export function encodeMessage(request: number, flags: number, payload: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(VHOST_USER_HEADER.size + payload.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(HEADER.request, request, true);
  view.setUint32(HEADER.flags, flags, true);
  view.setUint32(HEADER.size, payload.length, true);
  bytes.set(payload, VHOST_USER_HEADER.size);
  return bytes;
}

/** How a payload of type T is written, and read with its size checked. `decode` throws ProtocolError naming the request. */
export interface Payload<T> {
  encode(value: T): Uint8Array;
  decode(request: Subject, view: DataView): T;
}

/** Fails unless the payload has one of `sizes` bytes. */
export function checkSize(request: Subject, view: DataView, ...sizes: number[]): void {
  if (sizes.includes(view.byteLength)) return;
  const must = sizes.length === 1 && sizes[0] === 0 ? 'there must be none' : `must be ${sizes.join(' or ')}`;
  throw protocolError('PROTOCOL_PAYLOAD_SIZE', request, `payload is ${view.byteLength} bytes, ${must}`);
}

/** A 64-bit number below 2⁵³, read as two halves. */
export function getSafe64(request: Subject, view: DataView, off: number, what: string): number {
  const high = view.getUint32(off + 4, true);
  const low = view.getUint32(off, true);
  if (high < 0x20_0000) return high * 0x1_0000_0000 + low;
  const hex = high.toString(16) + low.toString(16).padStart(8, '0');
  throw protocolError('PROTOCOL_ADDRESS', request, `${what} 0x${hex} is not below 2^53`);
}

export function setSafe64(view: DataView, off: number, value: number): void {
  view.setUint32(off, value % 0x1_0000_0000, true);
  view.setUint32(off + 4, Math.floor(value / 0x1_0000_0000), true);
}

export const viewOver = ({ size }: Layout<string>) => new DataView(new ArrayBuffer(size));
export const bytesOf = (view: DataView) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);

/** No payload at all. */
export const EMPTY: Payload<void> = {
  encode: () => new Uint8Array(0),
  decode: (request, view) => checkSize(request, view, 0),
};

/** "A single 64-bit integer": features, counts, acknowledgements */
export const U64: Payload<bigint> = {
  encode(value) {
    const view = new DataView(new ArrayBuffer(8));
    view.setUint32(0, Number(value & 0xffff_ffffn), true);
    view.setUint32(4, Number((value >> 32n) & 0xffff_ffffn), true);
    return bytesOf(view);
  },
  decode(request, view) {
    checkSize(request, view, 8);
    return (BigInt(view.getUint32(4, true)) << 32n) | BigInt(view.getUint32(0, true));
  },
};

/** "A vring state description": a vring and a number that belongs to it, 32 bits each */
export interface VringState {
  readonly index: number;
  readonly num: number;
}

const STATE = VHOST_VRING_STATE.off;

export const VRING_STATE: Payload<VringState> = {
  encode({ index, num }) {
    const view = viewOver(VHOST_VRING_STATE);
    view.setUint32(STATE.index, index, true);
    view.setUint32(STATE.num, num, true);
    return bytesOf(view);
  },
  decode(request, view) {
    checkSize(request, view, VHOST_VRING_STATE.size);
    return { index: view.getUint32(STATE.index, true), num: view.getUint32(STATE.num, true) };
  },
};

/** "A vring address description" */
export interface VringAddrPayload extends VringAddresses {
  readonly index: number;
}

const ADDR = VHOST_VRING_ADDR.off;

export const VRING_ADDR: Payload<VringAddrPayload> = {
  encode({ index, flags, descAddr, usedAddr, availAddr, logAddr }) {
    const view = viewOver(VHOST_VRING_ADDR);
    view.setUint32(ADDR.index, index, true);
    view.setUint32(ADDR.flags, flags, true);
    setSafe64(view, ADDR.desc_user_addr, descAddr);
    setSafe64(view, ADDR.used_user_addr, usedAddr);
    setSafe64(view, ADDR.avail_user_addr, availAddr);
    setSafe64(view, ADDR.log_guest_addr, logAddr);
    return bytesOf(view);
  },
  decode(request, view) {
    checkSize(request, view, VHOST_VRING_ADDR.size);
    const flags = view.getUint32(ADDR.flags, true);
    const logged = (flags & VHOST_VRING_F_LOG) !== 0; // otherwise the field means nothing, and need not be a good address
    return {
      index: view.getUint32(ADDR.index, true),
      flags,
      descAddr: getSafe64(request, view, ADDR.desc_user_addr, 'descriptor table at'),
      usedAddr: getSafe64(request, view, ADDR.used_user_addr, 'used ring at'),
      availAddr: getSafe64(request, view, ADDR.avail_user_addr, 'available ring at'),
      logAddr: logged ? getSafe64(request, view, ADDR.log_guest_addr, 'log address') : 0,
    };
  },
};

/** "Memory region description": a region as it stands in a message, its descriptor apart. All below 2⁵³. */
export interface RegionPayload {
  /** guest physical address */
  readonly guestAddr: number;
  /** bytes */
  readonly size: number;
  readonly frontendAddr: number;
  /** bytes */
  readonly fileOff: number;
}

const REGION = VHOST_MEMORY_REGION.off;

function encodeRegion(view: DataView, at: number, region: RegionPayload): void {
  setSafe64(view, at + REGION.guest_phys_addr, region.guestAddr);
  setSafe64(view, at + REGION.memory_size, region.size);
  setSafe64(view, at + REGION.userspace_addr, region.frontendAddr);
  setSafe64(view, at + REGION.mmap_offset, region.fileOff);
}

function decodeRegion(request: Subject, view: DataView, at: number): RegionPayload {
  return {
    guestAddr: getSafe64(request, view, at + REGION.guest_phys_addr, 'guest address'),
    size: getSafe64(request, view, at + REGION.memory_size, 'region size'),
    frontendAddr: getSafe64(request, view, at + REGION.userspace_addr, 'user address'),
    fileOff: getSafe64(request, view, at + REGION.mmap_offset, 'mmap offset'),
  };
}

/** Bytes of a table of `n` regions. */
const tableSize = (n: number) => VHOST_MEMORY.size + n * VHOST_MEMORY_REGION.size;

/** "Multiple memory regions description". The table may be sent whole, with room for 8 regions, or cut behind the last. */
export const MEMORY_TABLE: Payload<readonly RegionPayload[]> = {
  encode(regions) {
    const view = new DataView(new ArrayBuffer(tableSize(regions.length)));
    view.setUint32(VHOST_MEMORY.off.nregions, regions.length, true);
    for (const [i, region] of regions.entries()) encodeRegion(view, tableSize(i), region);
    return bytesOf(view);
  },
  decode(request, view) {
    if (view.byteLength < VHOST_MEMORY.size) {
      const problem = `payload is ${view.byteLength} bytes, must be at least ${VHOST_MEMORY.size}`;
      throw protocolError('PROTOCOL_PAYLOAD_SIZE', request, problem);
    }
    const n = view.getUint32(VHOST_MEMORY.off.nregions, true);
    if (n > VHOST_USER_MAX_REGIONS) {
      throw protocolError('PROTOCOL_MEMORY', request, `${n} regions, must be at most ${VHOST_USER_MAX_REGIONS}`);
    }
    checkSize(request, view, ...new Set([tableSize(n), tableSize(VHOST_USER_MAX_REGIONS)]));
    return Array.from({ length: n }, (_, i) => decodeRegion(request, view, tableSize(i)));
  },
};

/** "Single memory region description": 8 bytes of padding, then one region */
export const MEMORY_REGION: Payload<RegionPayload> = {
  encode(region) {
    const view = new DataView(new ArrayBuffer(VHOST_MEM_REG.size + VHOST_MEMORY_REGION.size));
    encodeRegion(view, VHOST_MEM_REG.size, region);
    return bytesOf(view);
  },
  decode(request, view) {
    checkSize(request, view, VHOST_MEM_REG.size + VHOST_MEMORY_REGION.size);
    return decodeRegion(request, view, VHOST_MEM_REG.size);
  },
};
