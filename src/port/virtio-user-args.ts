/**
 * The keys of `--vdev net_virtio_user0,…`, as DPDK's virtio-user driver has them; and `offloads`, where DPDK's programs say by options
 * of their own what is offloaded.
 */
import { randomBytes } from 'node:crypto';
import type { VdevOf } from './vdev.ts';

export interface VirtioUserArgs {
  readonly name: string;
  /** the back end's socket, or ours if `server` */
  readonly path: string;
  /** we listen, and the back end connects */
  readonly server: boolean;
  /** `52:54:00:00:00:01` */
  readonly mac: string;
  readonly queues: number;
  readonly queueSize: number;
  readonly packed: boolean;
  readonly inOrder: boolean;
  readonly mergeable: boolean;
  /** what the link says of its speed, Mbit/s; 0: unknown */
  readonly speed: number;
  /** checksums and segmentation may be left to who receives, in both directions */
  readonly offloads: boolean;
}

/** An address of nobody's, of those that are handed out locally. */
function randomMac(): string {
  const bytes = randomBytes(6);
  bytes[0] = (bytes[0] & 0xfc) | 2;
  return [...bytes].map((byte) => byte.toString(16).padStart(2, '0')).join(':');
}

/** What the keys say, and a random address where they say none. */
export function virtioUserArgs({ name, values }: VdevOf<'net_virtio_user'>): VirtioUserArgs {
  return {
    name,
    path: values.path,
    server: values.server,
    mac: values.mac ?? randomMac(),
    queues: values.queues,
    queueSize: values.queue_size,
    packed: values.packed_vq,
    inOrder: values.in_order,
    mergeable: values.mrg_rxbuf,
    speed: values.speed ?? 0,
    offloads: values.offloads,
  };
}
