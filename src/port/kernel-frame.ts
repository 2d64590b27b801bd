/**
 * Frames between a burst and the kernel, which puts a virtio_net_hdr in front of each and takes one: what a guest leaves undone
 * the kernel does, and the other way round.
 * @see linux/virtio_net.h; VIRTIO 1.2 §5.1.6
 */
import { release as osRelease } from 'node:os';
import type { WindowViews } from '../mem/window.ts';
import { ETHHDR } from '../uapi/ip.ts';
import { VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_MRG_RXBUF } from '../uapi/virtio-net.ts';
import { BAD_OFFLOAD, type Burst, FRONT_BYTES, FRONT_WORDS, HEADER_BYTES } from '../virtio-net/burst.ts';
import {
  NEED_CSUM,
  NEED_ECN,
  NEED_TSO4,
  NEED_TSO6,
  NEED_UFO,
  NEED_USO4,
  NEED_USO6,
  NEEDS_MALFORMED,
  needsOf,
} from '../virtio-net/offload.ts';

const { off: HDR } = VIRTIO_NET_HDR_MRG_RXBUF;

/** Bytes of the header that the kernel and a legacy guest have: all but num_buffers. */
export const KERNEL_HEADER_BYTES = HDR.num_buffers;

/** What the kernel may leave undone in a frame that it gives us. */
const KERNEL_MAY_SEND = NEED_CSUM | NEED_TSO4 | NEED_TSO6 | NEED_ECN | NEED_UFO | NEED_USO4 | NEED_USO6;

/** The first kernel whose virtio_net_hdr has UDP segmentation. */
const USO_KERNEL = [6, 2];

/** What a kernel takes undone, of what guests may leave so. @param release as uname -r has it */
export function kernelAccepts(release = osRelease()): number {
  const [major = 0, minor = 0] = release.split(/[^0-9]+/).map(Number);
  const hasUso = major > USO_KERNEL[0] || (major === USO_KERNEL[0] && minor >= USO_KERNEL[1]);
  return hasUso ? KERNEL_MAY_SEND : KERNEL_MAY_SEND & ~(NEED_USO4 | NEED_USO6);
}

const ETHER_TYPE = ETHHDR.off.h_proto;

/**
 * Adds a frame, which stays where it is, as the burst's last packet; one whose header makes no sense becomes BAD_OFFLOAD.
 * @param views the window in which its `len` bytes begin at `off`
 * @param headerOff where in the same window its virtio_net_hdr is
 */
export function putFrame(burst: Burst, views: WindowViews, off: number, len: number, headerOff: number): void {
  const i = burst.count++;
  const { segments, front } = burst;
  const { dv, u8 } = views;
  burst.first[i] = segments.count;
  segments.push(views.id, off, len);
  burst.first[i + 1] = segments.count;
  burst.len[i] = len;
  burst.tag[i] = 0;
  const word = FRONT_WORDS * i;
  if (len >= FRONT_BYTES) {
    front[word] = dv.getInt32(off, true);
    front[word + 1] = dv.getInt32(off + 4, true);
    front[word + 2] = dv.getInt32(off + 8, true);
    front[word + 3] = dv.getInt32(off + 12, true);
  } else {
    for (let k = 0; k < FRONT_BYTES; k++) burst.frontBytes[FRONT_BYTES * i + k] = k < len ? u8[off + k] : 0;
  }
  if (((u8[headerOff + HDR.flags] & VIRTIO_NET_HDR_F_NEEDS_CSUM) | u8[headerOff + HDR.gso_type]) === 0) return;
  for (let k = 0; k < KERNEL_HEADER_BYTES; k++) burst.headerBytes[HEADER_BYTES * i + k] = u8[headerOff + k];
  readNeeds(burst, i);
}

function readNeeds(burst: Burst, i: number): void {
  const { header, frontBytes, len } = burst;
  const at = HEADER_BYTES * i;
  const needs = needsOf(
    header.getUint8(at + HDR.flags),
    header.getUint8(at + HDR.gso_type),
    header.getUint16(at + HDR.gso_size, true),
    header.getUint16(at + HDR.csum_start, true),
    header.getUint16(at + HDR.csum_offset, true),
    len[i],
    (frontBytes[FRONT_BYTES * i + ETHER_TYPE] << 8) | frontBytes[FRONT_BYTES * i + ETHER_TYPE + 1],
    KERNEL_MAY_SEND,
  );
  if (needs === NEEDS_MALFORMED) {
    len[i] = BAD_OFFLOAD;
    return;
  }
  burst.needs[i] = needs;
  burst.offloads = true;
}

/** The burst's last packet has come without its tag, which is this. */
export function setTag(burst: Burst, tpid: number, tci: number): void {
  burst.tag[burst.count - 1] = (tpid << 16) | tci;
  burst.tagged = true;
}

/** Writes the header that the kernel gets with packet `i`: of what the sender wrote, only what has been checked. */
export function writeHeader(burst: Burst, i: number, to: Uint8Array, at: number): void {
  if (burst.needs[i] === 0) {
    for (let k = 0; k < KERNEL_HEADER_BYTES; k++) to[at + k] = 0;
    return;
  }
  const from = HEADER_BYTES * i;
  for (let k = 0; k < KERNEL_HEADER_BYTES; k++) to[at + k] = burst.headerBytes[from + k];
  to[at + HDR.flags] &= VIRTIO_NET_HDR_F_NEEDS_CSUM;
  // a hint, which the kernel refuses where it is longer than the frame; it raises one that is too short
  if (burst.header.getUint16(from + HDR.hdr_len, true) <= burst.len[i]) return;
  to[at + HDR.hdr_len] = 0;
  to[at + HDR.hdr_len + 1] = 0;
}
