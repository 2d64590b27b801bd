/**
 * Requests about the device as a whole: config space, status, MTU, translations, reset.
 * @see QEMU docs/interop/vhost-user.rst "Front-end message types", "IOMMU support"
 */
import {
  VHOST_ACCESS_RW,
  VHOST_IOTLB_INVALIDATE,
  VHOST_IOTLB_UPDATE,
  VHOST_SET_CONFIG_TYPE_MIGRATION,
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_MTU,
  VHOST_USER_PROTOCOL_F_RESET_DEVICE,
  VHOST_USER_PROTOCOL_F_STATUS,
} from '../uapi/vhost-user.ts';
import { hasFeature, VIRTIO_F_ACCESS_PLATFORM } from '../uapi/virtio.ts';
import type { VhostDevice } from '../vhost/vhost-device.ts';
import { EMPTY, type Message, protocolError, type Subject, U64 } from './message.ts';
import { CONFIG, type ConfigPayload, IOTLB, type IotlbPayload } from './payloads.ts';
import { ask, type Session, tell } from './session.ts';

const ADDRESS_LIMIT = 2n ** 53n;
const MAX_MTU = 0xffffn;
const MAX_STATUS = 0xffn;

function checkMax(request: number, what: string, value: bigint, max: bigint): number {
  if (value <= max) return Number(value);
  throw protocolError('PROTOCOL_VALUE', request, `${what} ${value}, must be at most ${max}`);
}

async function getConfig({ device }: Session, { offset, flags, bytes }: ConfigPayload): Promise<ConfigPayload> {
  return { offset, flags, bytes: device.getConfig(offset, bytes.length) };
}

async function setConfig({ device }: Session, { offset, flags, bytes }: ConfigPayload, { request }: Message) {
  checkMax(request, 'flags', BigInt(flags), BigInt(VHOST_SET_CONFIG_TYPE_MIGRATION));
  await device.setConfig(offset, bytes, flags === VHOST_SET_CONFIG_TYPE_MIGRATION);
}

async function iotlbMessage({ device, features }: Session, iotlb: IotlbPayload, { request }: Message): Promise<bigint> {
  if (!hasFeature(features, VIRTIO_F_ACCESS_PLATFORM)) {
    throw protocolError('PROTOCOL_NOT_SUPPORTED', request, 'ACCESS_PLATFORM was not negotiated');
  }
  await changeIotlb(device, request, iotlb);
  return 0n;
}

/** Does what an update or an invalidation says. Throws ProtocolError about `request`. */
export async function changeIotlb(device: VhostDevice, request: Subject, iotlb: IotlbPayload): Promise<void> {
  if (iotlb.type === VHOST_IOTLB_UPDATE) await updateIotlb(device, request, iotlb);
  else if (iotlb.type === VHOST_IOTLB_INVALIDATE) await invalidateIotlb(device, iotlb);
  else throw protocolError('PROTOCOL_VALUE', request, `type ${iotlb.type}, must be 2 (update) or 3 (invalidate)`);
}

async function updateIotlb(device: VhostDevice, request: Subject, { iova, size, userAddr, permissions }: IotlbPayload) {
  const text = `0x${size.toString(16)} bytes at 0x${iova.toString(16)}, at 0x${userAddr.toString(16)} for the front end`;
  if (size === 0n || iova + size > ADDRESS_LIMIT || userAddr + size > ADDRESS_LIMIT) {
    throw protocolError('PROTOCOL_ADDRESS', request, `${text}: must not be empty nor end beyond 2^53`);
  }
  if (permissions > VHOST_ACCESS_RW) {
    throw protocolError('PROTOCOL_VALUE', request, `permissions ${permissions}, must be at most ${VHOST_ACCESS_RW}`);
  }
  await device.updateIotlb({ iova: Number(iova), size: Number(size), userAddr: Number(userAddr), permissions });
}

/** Beyond 2⁵³ there is nothing to invalidate. All 2⁶⁴ addresses are 0 bytes at 0, for the size has only 64 bits. */
async function invalidateIotlb(device: VhostDevice, { iova, size }: IotlbPayload): Promise<void> {
  const end = iova === 0n && size === 0n ? ADDRESS_LIMIT : iova + size;
  const upTo = end < ADDRESS_LIMIT ? end : ADDRESS_LIMIT;
  if (upTo > iova) await device.invalidateIotlb(Number(iova), Number(upTo - iova));
}

export const DEVICE_ROWS = {
  GET_CONFIG: ask(CONFIG, CONFIG, getConfig, {
    needs: VHOST_USER_PROTOCOL_F_CONFIG,
    failure: () => EMPTY.encode(),
  }),
  SET_CONFIG: tell(CONFIG, setConfig, { needs: VHOST_USER_PROTOCOL_F_CONFIG }),
  NET_SET_MTU: tell(U64, ({ device }, mtu, { request }) => device.setMtu(checkMax(request, 'MTU', mtu, MAX_MTU)), {
    needs: VHOST_USER_PROTOCOL_F_MTU,
  }),
  IOTLB_MSG: ask(IOTLB, U64, iotlbMessage, { failure: () => U64.encode(1n) }),
  RESET_DEVICE: tell(
    EMPTY,
    async (session) => {
      await session.device.resetRings();
      session.features = 0n;
    },
    { needs: VHOST_USER_PROTOCOL_F_RESET_DEVICE },
  ),
  SET_STATUS: tell(
    U64,
    ({ device }, status, { request }) => device.setStatus(checkMax(request, 'status', status, MAX_STATUS)),
    { needs: VHOST_USER_PROTOCOL_F_STATUS },
  ),
  GET_STATUS: ask(EMPTY, U64, async ({ device }) => BigInt(device.getStatus()), {
    needs: VHOST_USER_PROTOCOL_F_STATUS,
  }),
};
