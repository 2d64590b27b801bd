/**
 * What can be wrong with a capture file, as numbers: a reader on a polling thread makes no sentences, and whoever has to tell it may
 * be another thread.
 */
import { getSystemErrorMessage } from 'node:util';

/** Frames longer than this are no capture's: libpcap's own limit. */
export const MAX_CAPTURED = 262144;
/** A block with a packet, or a description of an interface, may have so many bytes; others, which are passed over, MAX_PASSED_BLOCK. */
export const MAX_BLOCK = 2 ** 19;
export const MAX_PASSED_BLOCK = 2 ** 24;
/** Interfaces that one section may describe. */
export const MAX_INTERFACES = 1024;

const hex = (n: number) => `0x${n.toString(16).padStart(8, '0')}`;

/** For each kind of fault, what was expected there, given what was found. */
const SAYS = {
  none: () => 'no fault',
  magic: (found: number) => `expected a pcap or pcapng file, which begins otherwise than with ${hex(found)}`,
  modified: () => "this is Kuznetzov's variant of pcap; expected plain pcap or pcapng: convert the file with editcap",
  version: (found: number) =>
    `expected format version 2.4 of pcap or 1.x of pcapng, found ${found >> 16}.${found & 0xffff}`,
  link_type: (found: number) => `expected Ethernet frames (link type 1), found link type ${found}`,
  too_long: (found: number) => `expected a frame of at most ${MAX_CAPTURED} bytes, found ${found}`,
  byte_order: (found: number) => `expected the byte-order magic 0x1a2b3c4d, found ${hex(found)}`,
  block_length: (found: number) =>
    `expected a block of a plausible length (a multiple of 4, at most ${MAX_BLOCK} bytes, if its kind is unknown ${MAX_PASSED_BLOCK}), found ${found}`,
  trailer: (found: number) => `expected the block's length once more at its end, found ${found}`,
  frame_length: (found: number) => `expected a frame that fits its block, found one of ${found} bytes`,
  interface: (found: number) => `expected a packet of an interface that was described before, found interface ${found}`,
  interfaces: () => `expected at most ${MAX_INTERFACES} interfaces`,
  options: (found: number) => `expected options that fit their block, found one of ${found} bytes`,
  resolution: (found: number) =>
    `expected time stamps no finer than 10^-15 s or 2^-52 s, found if_tsresol ${hex(found)}`,
  truncated: () => 'expected more than the file has: it ends within a header, a block or a frame',
  read: (found: number) => `reading failed: ${getSystemErrorMessage(-found)}`,
} as const;

/** The name of a fault. */
export type CaptureFaultName = keyof typeof SAYS;

const NAMES = Object.keys(SAYS) as CaptureFaultName[];

/** Each fault's number; `none` is 0. */
export const CAPTURE_FAULT = Object.fromEntries(NAMES.map((name, i) => [name, i])) as Record<CaptureFaultName, number>;

/** Says what is wrong: which file, at which byte, what was expected. @param found the number that was found there */
export function describeCaptureFault(path: string, fault: number, at: number, found: number): string {
  return `${path}: byte ${at}: ${SAYS[NAMES[fault]](found)}`;
}
