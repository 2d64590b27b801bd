/**
 * The requests the back end serves, one row each: payload, descriptors, what it needs, what it does. Here are those that open a
 * connection; the rest has its own files. A handler checks the numbers, then calls the device; it answers with a payload or with nothing.
 * @see QEMU docs/interop/vhost-user.rst "Front-end message types"
 */
import {
  REQUEST,
  type RequestName,
  VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  VHOST_USER_PROTOCOL_F_BACKEND_SEND_FD,
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  VHOST_USER_PROTOCOL_F_CROSS_ENDIAN,
  VHOST_USER_PROTOCOL_F_DEVICE_STATE,
  VHOST_USER_PROTOCOL_F_GET_VRING_BASE_INFLIGHT,
  VHOST_USER_PROTOCOL_F_GET_VRING_BASE_SKIP_DRAIN,
  VHOST_USER_PROTOCOL_F_GPA_ADDRESSES,
  VHOST_USER_PROTOCOL_F_HOST_NOTIFIER,
  VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS,
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  VHOST_USER_PROTOCOL_F_LOG_SHMFD,
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_MTU,
  VHOST_USER_PROTOCOL_F_PAGEFAULT,
  VHOST_USER_PROTOCOL_F_RARP,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_PROTOCOL_F_RESET_DEVICE,
  VHOST_USER_PROTOCOL_F_STATUS,
} from '../uapi/vhost-user.ts';
import { featureMask, hasFeature, VHOST_USER_F_PROTOCOL_FEATURES } from '../uapi/virtio.ts';
import type { VhostDevice } from '../vhost/vhost-device.ts';
import { checkSocket, onlyFd } from './descriptors.ts';
import { DEVICE_ROWS } from './device-requests.ts';
import { MEMORY_ROWS } from './memory-requests.ts';
import { ClosingError, EMPTY, type Message, protocolError, U64 } from './message.ts';
import { MIGRATION_ROWS } from './migration-requests.ts';
import { ask, type RequestRow, type Session, tell } from './session.ts';
import { VRING_ROWS } from './vring-requests.ts';

/** What needs nothing of a device. */
const ALWAYS_OFFERED = featureMask(VHOST_USER_PROTOCOL_F_MQ, VHOST_USER_PROTOCOL_F_REPLY_ACK);
/** What a device may serve. The rest belongs to other types of device, or to Xen. */
const FOR_DEVICES = featureMask(
  VHOST_USER_PROTOCOL_F_LOG_SHMFD,
  VHOST_USER_PROTOCOL_F_RARP,
  VHOST_USER_PROTOCOL_F_MTU,
  VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  VHOST_USER_PROTOCOL_F_CROSS_ENDIAN,
  VHOST_USER_PROTOCOL_F_PAGEFAULT,
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_BACKEND_SEND_FD,
  VHOST_USER_PROTOCOL_F_HOST_NOTIFIER,
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  VHOST_USER_PROTOCOL_F_RESET_DEVICE,
  VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS,
  VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  VHOST_USER_PROTOCOL_F_STATUS,
  VHOST_USER_PROTOCOL_F_DEVICE_STATE,
  VHOST_USER_PROTOCOL_F_GET_VRING_BASE_INFLIGHT,
  VHOST_USER_PROTOCOL_F_GPA_ADDRESSES,
  VHOST_USER_PROTOCOL_F_GET_VRING_BASE_SKIP_DRAIN,
);

const offeredProtocolFeatures = (device: VhostDevice) => ALWAYS_OFFERED | (device.protocolFeatures & FOR_DEVICES);
const offeredFeatures = (device: VhostDevice) => device.offeredFeatures | featureMask(VHOST_USER_F_PROTOCOL_FEATURES);

const ROWS: { readonly [K in RequestName]?: RequestRow } = {
  GET_FEATURES: ask(EMPTY, U64, async ({ device }) => offeredFeatures(device)),
  SET_FEATURES: tell(U64, setFeatures),
  SET_OWNER: tell(EMPTY, async () => {}),
  RESET_OWNER: tell(EMPTY, resetOwner),
  GET_PROTOCOL_FEATURES: ask(EMPTY, U64, async ({ device }) => offeredProtocolFeatures(device)),
  SET_PROTOCOL_FEATURES: tell(U64, setProtocolFeatures),
  GET_QUEUE_NUM: ask(EMPTY, U64, async ({ device }) => BigInt(device.queueNum)),
  SET_BACKEND_REQ_FD: tell(EMPTY, setBackendReqFd, { maxFds: 1, needs: VHOST_USER_PROTOCOL_F_BACKEND_REQ }),
  ...VRING_ROWS,
  ...MEMORY_ROWS,
  ...MIGRATION_ROWS,
  ...DEVICE_ROWS,
};

/** The rows by request number. */
export const REQUESTS: ReadonlyMap<number, RequestRow> = new Map(
  (Object.keys(ROWS) as RequestName[]).map((name): [number, RequestRow] => [REQUEST[name], ROWS[name] as RequestRow]),
);

/** Fails if `features` has a bit that `offered` lacks. */
function checkOffered(request: number, features: bigint, offered: bigint): void {
  const extra = features & ~offered;
  if (extra === 0n) return;
  const bits = Array.from({ length: 64 }, (_, bit) => bit).filter((bit) => hasFeature(extra, bit));
  throw protocolError('PROTOCOL_FEATURES', request, `feature bits that were not offered: ${bits.join(', ')}`);
}

async function setFeatures(session: Session, features: bigint, { request }: Message): Promise<void> {
  checkOffered(request, features, offeredFeatures(session.device));
  const protocolFeatures = hasFeature(features, VHOST_USER_F_PROTOCOL_FEATURES);
  const accepted = features & ~featureMask(VHOST_USER_F_PROTOCOL_FEATURES);
  await session.device.setFeatures(accepted, protocolFeatures);
  session.features = accepted;
}

/** The features that `features` lacks although `bit`, which it has, needs them. */
function missingFor(features: bigint, bit: number, ...needed: number[]): number[] {
  return hasFeature(features, bit) ? needed.filter((other) => !hasFeature(features, other)) : [];
}

async function setProtocolFeatures(session: Session, features: bigint, { request }: Message): Promise<void> {
  const { device, protocolFeatures: before } = session;
  checkOffered(request, features, offeredProtocolFeatures(device));
  const inBand = VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS;
  const missing = missingFor(features, inBand, VHOST_USER_PROTOCOL_F_BACKEND_REQ, VHOST_USER_PROTOCOL_F_REPLY_ACK);
  if (missing.length > 0) {
    const problem = `in-band notifications (bit ${inBand}) need bits ${missing.join(' and ')} too`;
    throw new ClosingError('PROTOCOL_FEATURES', request, problem);
  }
  const [inflight, skipDrain] = [VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD, VHOST_USER_PROTOCOL_F_GET_VRING_BASE_SKIP_DRAIN];
  const unmet = missingFor(features, skipDrain, VHOST_USER_PROTOCOL_F_GET_VRING_BASE_INFLIGHT, inflight);
  if (unmet.length > 0) {
    throw protocolError('PROTOCOL_FEATURES', request, `bit ${skipDrain} needs bits ${unmet.join(' and ')} too`);
  }
  session.protocolFeatures = features;
  const changed = (bit: number) => hasFeature(features ^ before, bit);
  const gpa = VHOST_USER_PROTOCOL_F_GPA_ADDRESSES;
  if (changed(gpa)) device.setAddressSpace(hasFeature(features, gpa) ? 'guest' : 'frontend');
  if (changed(inBand)) device.setInBand(hasFeature(features, inBand));
}

/**
 * Deprecated: a back end should ignore it or disable its rings. Some versions of QEMU send it when the guest resets the device, and do
 * not give memory again that a back end then forgets.
 */
async function resetOwner({ device }: Session): Promise<void> {
  for (let vring = 0; vring < device.maxVrings; vring++) await device.setVringEnable(vring, false);
}

async function setBackendReqFd(session: Session, _: unknown, { request, fds }: Message): Promise<void> {
  checkSocket(request, onlyFd(request, fds));
  const [fd] = fds.splice(0);
  session.openChannel(fd);
}
