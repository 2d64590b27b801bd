/**
 * Payloads of single features: log, IOTLB, config space, inflight records, device state, host notifier.
 * @see QEMU docs/interop/vhost-user.rst "Payload"
 */
import {
  VHOST_IOTLB_MESSAGE,
  VHOST_USER_CONFIG,
  VHOST_USER_INFLIGHT,
  VHOST_USER_LOG,
  VHOST_USER_MAX_CONFIG_SIZE,
  VHOST_USER_TRANSFER,
  VHOST_USER_VRING_AREA,
} from '../uapi/vhost-user.ts';
import {
  bytesOf,
  checkSize,
  getSafe64,
  type Payload,
  protocolError,
  type Subject,
  setSafe64,
  viewOver,
} from './message.ts';

const LIMIT = 2 ** 53;

/** A piece of a file: where a shared area lies. */
export interface AreaPayload {
  /** bytes */
  readonly size: number;
  /** bytes */
  readonly fileOff: number;
}

function decodeArea(request: Subject, view: DataView, sizeOff: number, fileOffOff: number, what: string): AreaPayload {
  const size = getSafe64(request, view, sizeOff, `${what} size`);
  const fileOff = getSafe64(request, view, fileOffOff, `${what} offset`);
  if (size + fileOff <= LIMIT) return { size, fileOff };
  throw protocolError('PROTOCOL_MEMORY', request, `${what} of ${size} bytes from ${fileOff} on ends beyond 2^53`);
}

/** "Log description" */
export const LOG: Payload<AreaPayload> = {
  encode({ size, fileOff }) {
    const view = viewOver(VHOST_USER_LOG);
    setSafe64(view, VHOST_USER_LOG.off.mmap_size, size);
    setSafe64(view, VHOST_USER_LOG.off.mmap_offset, fileOff);
    return bytesOf(view);
  },
  decode(request, view) {
    checkSize(request, view, VHOST_USER_LOG.size);
    return decodeArea(request, view, VHOST_USER_LOG.off.mmap_size, VHOST_USER_LOG.off.mmap_offset, 'log');
  },
};

/** "An IOTLB message". The numbers are as they came: invalidating may name all addresses there are. */
export interface IotlbPayload {
  readonly iova: bigint;
  /** bytes */
  readonly size: bigint;
  readonly userAddr: bigint;
  readonly permissions: number;
  readonly type: number;
}

const IOTLB_OFF = VHOST_IOTLB_MESSAGE.off;

export const IOTLB: Payload<IotlbPayload> = {
  encode({ iova, size, userAddr, permissions, type }) {
    const view = viewOver(VHOST_IOTLB_MESSAGE);
    view.setBigUint64(IOTLB_OFF.iova, iova, true);
    view.setBigUint64(IOTLB_OFF.size, size, true);
    view.setBigUint64(IOTLB_OFF.uaddr, userAddr, true);
    view.setUint8(IOTLB_OFF.perm, permissions);
    view.setUint8(IOTLB_OFF.type, type);
    return bytesOf(view);
  },
  decode(request, view) {
    checkSize(request, view, VHOST_IOTLB_MESSAGE.size);
    return {
      iova: view.getBigUint64(IOTLB_OFF.iova, true),
      size: view.getBigUint64(IOTLB_OFF.size, true),
      userAddr: view.getBigUint64(IOTLB_OFF.uaddr, true),
      permissions: view.getUint8(IOTLB_OFF.perm),
      type: view.getUint8(IOTLB_OFF.type),
    };
  },
};

/** "Virtio device config space": as many bytes as its size field says */
export interface ConfigPayload {
  readonly offset: number;
  readonly flags: number;
  /** its own copy */
  readonly bytes: Uint8Array;
}

const CONFIG_OFF = VHOST_USER_CONFIG.off;

export const CONFIG: Payload<ConfigPayload> = {
  encode({ offset, flags, bytes }) {
    const view = new DataView(new ArrayBuffer(VHOST_USER_CONFIG.size + bytes.length));
    view.setUint32(CONFIG_OFF.offset, offset, true);
    view.setUint32(CONFIG_OFF.size, bytes.length, true);
    view.setUint32(CONFIG_OFF.flags, flags, true);
    const out = bytesOf(view);
    out.set(bytes, VHOST_USER_CONFIG.size);
    return out;
  },
  decode(request, view) {
    const head = VHOST_USER_CONFIG.size;
    if (view.byteLength < head) {
      throw protocolError(
        'PROTOCOL_PAYLOAD_SIZE',
        request,
        `payload is ${view.byteLength} bytes, must be at least ${head}`,
      );
    }
    const size = view.getUint32(CONFIG_OFF.size, true);
    if (size === 0 || size > VHOST_USER_MAX_CONFIG_SIZE) {
      const range = `must be 1 to ${VHOST_USER_MAX_CONFIG_SIZE}`;
      throw protocolError('PROTOCOL_VALUE', request, `${size} bytes of config space, ${range}`);
    }
    checkSize(request, view, head + size);
    return {
      offset: view.getUint32(CONFIG_OFF.offset, true),
      flags: view.getUint32(CONFIG_OFF.flags, true),
      bytes: bytesOf(view).slice(head),
    };
  },
};

/** "Inflight description" */
export interface InflightPayload extends AreaPayload {
  /** vrings */
  readonly queues: number;
  /** descriptors */
  readonly queueSize: number;
}

const INFLIGHT_OFF = VHOST_USER_INFLIGHT.off;
/** Bytes of the fields without the C struct's padding. */
export const INFLIGHT_BARE_SIZE = INFLIGHT_OFF.queue_size + 2;

/** May come with the padding of the C struct, as QEMU sends it, or without. */
export const INFLIGHT: Payload<InflightPayload> = {
  encode({ size, fileOff, queues, queueSize }) {
    const view = viewOver(VHOST_USER_INFLIGHT);
    setSafe64(view, INFLIGHT_OFF.mmap_size, size);
    setSafe64(view, INFLIGHT_OFF.mmap_offset, fileOff);
    view.setUint16(INFLIGHT_OFF.num_queues, queues, true);
    view.setUint16(INFLIGHT_OFF.queue_size, queueSize, true);
    return bytesOf(view);
  },
  decode(request, view) {
    checkSize(request, view, INFLIGHT_BARE_SIZE, VHOST_USER_INFLIGHT.size);
    return {
      ...decodeArea(request, view, INFLIGHT_OFF.mmap_size, INFLIGHT_OFF.mmap_offset, 'inflight area'),
      queues: view.getUint16(INFLIGHT_OFF.num_queues, true),
      queueSize: view.getUint16(INFLIGHT_OFF.queue_size, true),
    };
  },
};

/** "Device state transfer parameters" */
export interface TransferPayload {
  readonly direction: number;
  readonly phase: number;
}

export const TRANSFER: Payload<TransferPayload> = {
  encode({ direction, phase }) {
    const view = viewOver(VHOST_USER_TRANSFER);
    view.setUint32(VHOST_USER_TRANSFER.off.direction, direction, true);
    view.setUint32(VHOST_USER_TRANSFER.off.phase, phase, true);
    return bytesOf(view);
  },
  decode(request, view) {
    checkSize(request, view, VHOST_USER_TRANSFER.size);
    return {
      direction: view.getUint32(VHOST_USER_TRANSFER.off.direction, true),
      phase: view.getUint32(VHOST_USER_TRANSFER.off.phase, true),
    };
  },
};

/** "Vring area description": `index` is a vring, with bit 8 set where no descriptor comes along */
export interface VringAreaPayload extends AreaPayload {
  readonly index: number;
}

const AREA_OFF = VHOST_USER_VRING_AREA.off;

export const VRING_AREA: Payload<VringAreaPayload> = {
  encode({ index, size, fileOff }) {
    const view = viewOver(VHOST_USER_VRING_AREA);
    setSafe64(view, AREA_OFF.index, index);
    setSafe64(view, AREA_OFF.size, size);
    setSafe64(view, AREA_OFF.offset, fileOff);
    return bytesOf(view);
  },
  decode(request, view) {
    checkSize(request, view, VHOST_USER_VRING_AREA.size);
    return {
      index: getSafe64(request, view, AREA_OFF.index, 'vring'),
      ...decodeArea(request, view, AREA_OFF.size, AREA_OFF.offset, 'area'),
    };
  },
};
