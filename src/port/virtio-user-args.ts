/**
 * The keys of `--vdev net_virtio_user0,…`, as DPDK's virtio-user driver has them; and `offloads`, where DPDK's programs say by options
 * of their own what is offloaded.
 */
import { randomBytes } from 'node:crypto';
import { VIRTQ_MAX_SIZE } from '../uapi/virtio-ring.ts';
import { type Vdev, VdevArgs } from './vdev.ts';

/** Queue pairs that a card may have: as many as a net device of ours. */
const MAX_PAIRS = 128;
const DEFAULT_QUEUE_SIZE = 256;

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
  /** checksums and segmentation may be left to who receives, in both directions */
  readonly offloads: boolean;
}

/** An address of nobody's, of those that are handed out locally. */
function randomMac(): string {
  const bytes = randomBytes(6);
  bytes[0] = (bytes[0] & 0xfc) | 2;
  return [...bytes].map((byte) => byte.toString(16).padStart(2, '0')).join(':');
}

/** Throws ConfigError. */
export function virtioUserArgs(vdev: Vdev): VirtioUserArgs {
  const args = new VdevArgs(vdev);
  const mac = args.text('mac')?.toLowerCase() ?? randomMac();
  if (!/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/.test(mac))
    throw args.fault(`mac=${mac}: must be six bytes like 52:54:00:00:00:01`);
  const queueSize = args.integer('queue_size', DEFAULT_QUEUE_SIZE, 2, VIRTQ_MAX_SIZE);
  if ((queueSize & (queueSize - 1)) !== 0) throw args.fault(`queue_size=${queueSize}: must be a power of two`);
  const parsed: VirtioUserArgs = {
    name: vdev.name,
    path: args.needed('path', 'the socket of the vhost-user back end'),
    server: args.flag('server', false),
    mac,
    queues: args.integer('queues', 1, 1, MAX_PAIRS),
    queueSize,
    packed: args.flag('packed_vq', false),
    inOrder: args.flag('in_order', true),
    mergeable: args.flag('mrg_rxbuf', true),
    offloads: args.flag('offloads', false),
  };
  // what DPDK's driver takes beside these and what makes no difference here
  for (const ignored of ['speed', 'vectorized', 'cq']) args.text(ignored);
  args.end();
  return parsed;
}
