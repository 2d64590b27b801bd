/**
 * The inflight records of a device's vrings: memory for them, and where each vring's lie. What they say is the datapath's business.
 * @see QEMU docs/interop/vhost-user.rst "Inflight I/O tracking"
 */
import { closeSync } from 'node:fs';
import { ProtocolError } from '../errors.ts';
import { SharedMapping } from '../mem/shared-mapping.ts';
import type { WindowPool } from '../mem/window.ts';
import { createMemfd, sealAgainstShrinking } from '../sys/memory.ts';
import { inflightQueueBytes } from '../uapi/inflight.ts';
import { VIRTQ_MAX_SIZE } from '../uapi/virtio-ring.ts';
import type { InflightPlace, RingConfig } from '../virtqueue/ring-config.ts';
import type { SharedArea } from './vhost-device.ts';

type RingFormat = RingConfig['format'];

function checkSize(request: string, queues: number, queueSize: number, maxQueues: number): void {
  const fail = (what: string, given: number, max: number) => {
    throw new ProtocolError('BAD_SHARED_AREA', request, `${given} ${what}, must be 1 to ${max}`);
  };
  if (!(queues >= 1 && queues <= maxQueues)) fail('queues', queues, maxQueues);
  if (!(queueSize >= 1 && queueSize <= VIRTQ_MAX_SIZE)) fail('descriptors a queue', queueSize, VIRTQ_MAX_SIZE);
}

/**
 * A sealed memory file of zeros for the records of `queues` vrings of `queueSize` descriptors. The caller owns its fd.
 * @throws ProtocolError for more than `maxQueues` or for rings that cannot be
 */
export function makeInflightArea(format: RingFormat, queues: number, queueSize: number, maxQueues: number): SharedArea {
  checkSize('GET_INFLIGHT_FD', queues, queueSize, maxQueues);
  const size = queues * inflightQueueBytes(format, queueSize);
  const fd = createMemfd('vhost-inflight', size);
  if (!sealAgainstShrinking(fd)) {
    closeSync(fd);
    throw new ProtocolError('BAD_SHARED_AREA', 'GET_INFLIGHT_FD', 'the memory file cannot be sealed');
  }
  return { fd, size, fileOff: 0 };
}

/** Records that the front end has handed over. */
export class InflightArea {
  readonly mapping: SharedMapping;
  readonly queues: number;
  readonly queueSize: number;

  /** Maps the area and takes its fd over, also on failure. @throws ProtocolError if it is not big enough for rings of `format` */
  constructor(
    pool: WindowPool,
    area: SharedArea,
    format: RingFormat,
    queues: number,
    queueSize: number,
    maxQueues: number,
  ) {
    try {
      checkSize('SET_INFLIGHT_FD', queues, queueSize, maxQueues);
      const need = queues * inflightQueueBytes(format, queueSize);
      if (area.size < need) {
        const problem = `${queues} queues of ${queueSize} descriptors need ${need} bytes of records, the area has ${area.size}`;
        throw new ProtocolError('BAD_SHARED_AREA', 'SET_INFLIGHT_FD', problem);
      }
    } catch (error) {
      closeSync(area.fd);
      throw error;
    }
    this.queues = queues;
    this.queueSize = queueSize;
    this.mapping = new SharedMapping(pool, area, 'the inflight records', 'SET_INFLIGHT_FD');
  }

  /** Where the records of a vring lie; undefined if there are none for it, or none of that format. */
  placeOf(vring: number, format: RingFormat): InflightPlace | undefined {
    const bytes = inflightQueueBytes(format, this.queueSize);
    if (vring >= this.queues || (vring + 1) * bytes > this.mapping.size) return undefined;
    return { window: this.mapping.window, off: this.mapping.off + vring * bytes, num: this.queueSize };
  }
}
