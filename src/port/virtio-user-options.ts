/**
 * What a virtio-user card wants, and what it agrees upon with its back end.
 */
import { SwitchError } from '../errors.ts';
import {
  VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
} from '../uapi/vhost-user.ts';
import {
  featureMask,
  hasFeature,
  VHOST_USER_F_PROTOCOL_FEATURES,
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_VERSION_1,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_RING_F_INDIRECT_DESC,
} from '../uapi/virtio.ts';
import { VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF } from '../uapi/virtio-net.ts';
import type { FrontEnd } from '../vhost-user/front-end.ts';
import type { RingPlace } from '../virtqueue/driver-ring.ts';
import type { RamRegion } from './guest-ram.ts';
import type { ChainLayout } from './net-queue.ts';

export const DEFAULT_FEATURES = featureMask(
  VIRTIO_F_VERSION_1,
  VIRTIO_NET_F_MRG_RXBUF,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_RING_F_INDIRECT_DESC,
);
const DEFAULT_PROTOCOL_FEATURES = featureMask(
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
);

/** Where the back end is, and what the card is made of. */
export interface VirtioUserOptions {
  /** the back end's socket */
  readonly path: string;
  /** How long to retry while nobody listens, ms. Default 0. */
  readonly deadlineMs?: number;
  /** As text, `52:54:00:00:00:01`. The card does not filter by it, nor put it into frames. */
  readonly mac?: string;
  /** Virtio features wanted; used as far as the back end offers them. Default VERSION_1, MRG_RXBUF, EVENT_IDX, INDIRECT_DESC. */
  readonly features?: bigint;
  /** Protocol features wanted; 0n acknowledges bit 30 with none, undefined wants MQ, REPLY_ACK, CONFIGURE_MEM_SLOTS. */
  readonly protocolFeatures?: bigint;
  /** false: bit 30 is not acknowledged, so that rings are enabled from the start. Default true. */
  readonly negotiateProtocol?: boolean;
  /** Packed rings, as far as the back end offers RING_PACKED. Default false. */
  readonly packed?: boolean;
  /** Buffers used in order, as far as the back end offers IN_ORDER. Default false. */
  readonly inOrder?: boolean;
  /** The back end keeps inflight records, as far as it offers INFLIGHT_SHMFD: they outlive it, for the one that comes after. Default false. */
  readonly inflight?: boolean;
  /** Queue pairs; more than one needs the protocol feature MQ, and wants VIRTIO_NET_F_MQ. Default 1. */
  readonly pairs?: number;
  /** Descriptors of each ring, at most 32768; of split rings a power of two. Default 256. */
  readonly ringSize?: number;
  /** Bytes of the largest frame to be sent; 65550 for all that segmentation offload allows (§5.1.6.3.1). Default 1522. */
  readonly maxFrame?: number;
  /** Bytes of a receive buffer, header included. Default 2048. */
  readonly bufferBytes?: number;
  /** How transmit buffers are cut into descriptors. Default: one descriptor, not indirect. */
  readonly txLayout?: ChainLayout;
  /** The same for receive buffers. */
  readonly rxLayout?: ChainLayout;
  /** Guest memory; the rings lie in the first region. Default: one region, large enough, at 1 GiB. */
  readonly memory?: readonly RamRegion[];
  /** Hand memory over by ADD_MEM_REG, where negotiated. Default: only if there are more than 8 regions. */
  readonly memSlots?: boolean;
}

/** What a card asks of a back end, and gets as far as it is offered. */
interface Wanted {
  readonly features: bigint;
  readonly protocolFeatures: bigint;
  /** acknowledge bit 30 */
  readonly negotiateProtocol: boolean;
  readonly pairs: number;
}

export function wantedBy(options: VirtioUserOptions): Wanted {
  const { features = DEFAULT_FEATURES, protocolFeatures = DEFAULT_PROTOCOL_FEATURES } = options;
  const { negotiateProtocol = true, pairs = 1, packed = false, inOrder = false, inflight = false } = options;
  const more = [
    ...(packed ? [VIRTIO_F_RING_PACKED] : []),
    ...(inOrder ? [VIRTIO_F_IN_ORDER] : []),
    ...(pairs > 1 ? [VIRTIO_NET_F_MQ] : []),
  ];
  return {
    features: features | featureMask(...more),
    protocolFeatures: protocolFeatures | (inflight ? featureMask(VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD) : 0n),
    negotiateProtocol,
    pairs,
  };
}

/** What card and back end agree upon; bit 30 is among the features. */
export interface Agreed {
  readonly features: bigint;
  readonly protocolFeatures: bigint;
}

/** SET_OWNER and both kinds of features. Throws SwitchError (TOO_MANY_PAIRS), ProtocolError. */
export async function negotiate(frontEnd: FrontEnd, wanted: Wanted): Promise<Agreed> {
  const offered = await frontEnd.getFeatures();
  const bit30 = featureMask(VHOST_USER_F_PROTOCOL_FEATURES) & offered;
  const withProtocol = bit30 !== 0n && wanted.negotiateProtocol;
  let protocolFeatures = 0n;
  if (withProtocol) {
    protocolFeatures = (await frontEnd.getProtocolFeatures()) & wanted.protocolFeatures;
    await frontEnd.setProtocolFeatures(protocolFeatures);
  }
  await checkPairs(frontEnd, hasFeature(protocolFeatures, VHOST_USER_PROTOCOL_F_MQ), wanted.pairs);
  await frontEnd.setOwner();
  const features = (wanted.features & ~bit30 & offered) | (withProtocol ? bit30 : 0n);
  await frontEnd.setFeatures(features);
  return { features, protocolFeatures };
}

/** What a back end is told of a vring. */
export interface VringToStart {
  readonly place: RingPlace;
  /** descriptors */
  readonly size: number;
  /** as SET_VRING_BASE has it */
  readonly base: number;
  /** front-end address of the descriptors */
  readonly descAddr: number;
  readonly kickFd: number;
  readonly callFd: number;
}

/** Tells a back end where a vring lies and where it goes on, and starts it. */
export async function startVring(frontEnd: FrontEnd, index: number, ring: VringToStart): Promise<void> {
  const { place, size, base, descAddr, kickFd, callFd } = ring;
  await frontEnd.setVringNum(index, size);
  await frontEnd.setVringBase(index, base);
  await frontEnd.setVringAddr(index, {
    flags: 0,
    descAddr,
    availAddr: descAddr + place.availOff - place.descOff,
    usedAddr: descAddr + place.usedOff - place.descOff,
    logAddr: 0,
  });
  await frontEnd.setVringCall(index, callFd);
  await frontEnd.setVringKick(index, kickFd);
}

async function checkPairs(frontEnd: FrontEnd, mq: boolean, pairs: number): Promise<void> {
  const max = mq ? await frontEnd.getQueueNum() : 1;
  if (pairs <= max) return;
  const why = mq ? '' : ', as the protocol feature MQ is not negotiated';
  throw new SwitchError('TOO_MANY_PAIRS', `the back end has ${max} queue pairs${why}; ${pairs} are wanted`);
}
