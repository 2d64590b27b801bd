/**
 * What a virtio-user card is made of, once it is known what its rings are: memory, rings and their buffers, eventfds.
 */
import { ConfigError } from '../errors.ts';
import type { WindowPool } from '../mem/window.ts';
import { createEventfds } from '../sys/eventfd.ts';
import { hasFeature, VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED, VIRTIO_RING_F_EVENT_IDX } from '../uapi/virtio.ts';
import {
  netHeaderSize,
  VIRTIO_NET_F_HOST_TSO4,
  VIRTIO_NET_F_HOST_TSO6,
  VIRTIO_NET_F_MRG_RXBUF,
} from '../uapi/virtio-net.ts';
import { MAX_FRAME_BYTES } from '../virtio-net/burst.ts';
import { MAX_GSO_BYTES } from '../virtio-net/offload-stage.ts';
import { LINE } from '../virtqueue/driver-ring.ts';
import { GuestRam } from './guest-ram.ts';
import { ringLayout } from './net-pair.ts';
import { makeUserRing, pairControl, type UserPairPlan } from './user-pair.ts';
import { type UserRing, type UserRingPlan, userRingState } from './user-ring.ts';

const GUEST_ADDR = 0x4000_0000;
const MEMORY_UNIT = 2 ** 21;
const PAGE = 4096;
const RX_BUFFER_BYTES = 2048;
const TAG_BYTES = 4;

const alignUp = (n: number, to: number) => Math.ceil(n / to) * to;
/** An odd number of cache lines: buffers begin in all sets of a cache, and not in a few. */
const strideOf = (room: number) => (Math.ceil(room / LINE) | 1) * LINE;

/** What is to be made. */
export interface CardWanted {
  /** names the card in errors */
  readonly name: string;
  /** as agreed with the back end */
  readonly features: bigint;
  /** descriptors of each ring */
  readonly queueSize: number;
  /** queue pairs */
  readonly queues: number;
}

/** A pair as the main thread has it. Ring 0 receives, ring 1 transmits. */
export interface LaidPair {
  readonly plan: UserPairPlan;
  readonly control: Int32Array;
  readonly rings: readonly [UserRing, UserRing];
  readonly txCallFd: number;
}

/**
 * Makes all of it; memory and eventfds are the caller's. Rings are to be reset before they are used. Throws ConfigError if it does
 * not fit a window, SysError; nothing is left behind then.
 */
export function layOutCard(wanted: CardWanted, pool: WindowPool): { ram: GuestRam; pairs: readonly LaidPair[] } {
  const { features, queueSize: size, queues } = wanted;
  const headerLen = netHeaderSize(features);
  const packed = hasFeature(features, VIRTIO_F_RING_PACKED);
  const large = hasFeature(features, VIRTIO_NET_F_HOST_TSO4) || hasFeature(features, VIRTIO_NET_F_HOST_TSO6);
  const txRoom = headerLen + (large ? MAX_GSO_BYTES : MAX_FRAME_BYTES + TAG_BYTES);
  const rxRoom = hasFeature(features, VIRTIO_NET_F_MRG_RXBUF) ? RX_BUFFER_BYTES : txRoom;
  const layout = ringLayout(packed, size);
  const bytesOf = (room: number) => alignUp(layout.bytes, PAGE) + PAGE + size * strideOf(room) + LINE;
  const ram = cardMemory(wanted, alignUp(queues * (bytesOf(rxRoom) + bytesOf(txRoom)), MEMORY_UNIT), pool);
  const ring = (room: number, receives: boolean): UserRingPlan => {
    const { off } = ram.alloc(layout.bytes, PAGE);
    const buffer = ram.alloc(size * strideOf(room));
    return {
      format: packed ? 'packed' : 'split',
      place: { descOff: off + layout.descOff, availOff: off + layout.availOff, usedOff: off + layout.usedOff },
      size,
      eventIdx: hasFeature(features, VIRTIO_RING_F_EVENT_IDX),
      inOrder: hasFeature(features, VIRTIO_F_IN_ORDER),
      receives,
      buffersOff: buffer.off,
      stride: strideOf(room),
      room,
      addressDelta: buffer.addr - buffer.off,
      state: userRingState(size),
    };
  };
  const plans = Array.from({ length: queues }, () => [ring(rxRoom, true), ring(txRoom, false)] as const);
  let fds: number[];
  try {
    // Last, so that nothing is left open where something does not fit.
    fds = createEventfds(4 * queues);
  } catch (error) {
    ram.close();
    throw error;
  }
  const pairs = plans.map(([rx, tx], n): LaidPair => {
    const control = pairControl();
    const [rxKickFd, rxCallFd, txKickFd, txCallFd] = fds.slice(4 * n, 4 * n + 4);
    return {
      plan: { control: control.buffer as SharedArrayBuffer, rx, tx, rxKickFd, rxCallFd, txKickFd },
      control,
      rings: [makeUserRing(rx, ram.views), makeUserRing(tx, ram.views)],
      txCallFd,
    };
  });
  return { ram, pairs };
}

function cardMemory({ name, queues, queueSize }: CardWanted, bytes: number, pool: WindowPool): GuestRam {
  try {
    return new GuestRam([{ guestAddr: GUEST_ADDR, size: bytes }], pool);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    const mib = bytes / 2 ** 20;
    const problem = `${queues} queues of ${queueSize} descriptors need ${mib} MiB: at most 2047 are possible`;
    throw new ConfigError('CONFIG_INVALID_VALUE', '--vdev', problem, { value: name });
  }
}
