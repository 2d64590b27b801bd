/**
 * Requests about one vring.
 * @see QEMU docs/interop/vhost-user.rst "Ring states", "In-band notifications"
 */
import {
  VHOST_USER_PROTOCOL_F_CROSS_ENDIAN,
  VHOST_USER_PROTOCOL_F_GET_VRING_BASE_SKIP_DRAIN,
  VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS,
  VHOST_USER_VRING_IDX_MASK,
  VHOST_USER_VRING_NOFD_MASK,
} from '../uapi/vhost-user.ts';
import { VIRTQ_MAX_SIZE } from '../uapi/virtio-ring.ts';
import { NO_FD } from '../vhost/vhost-device.ts';
import { checkEventfd } from './descriptors.ts';
import { type Message, protocolError, U64, VRING_ADDR, VRING_STATE, type VringState } from './message.ts';
import { ask, checkVring, type RequestRow, type Session, tell } from './session.ts';

/** What a vring state does to the vring that it names. */
type UseState = (session: Session, vring: number, num: number, request: number) => Promise<void>;

function state(use: UseState, needs?: number): RequestRow {
  return tell(
    VRING_STATE,
    (session, { index, num }, { request }) => use(session, checkVring(session, request, index), num, request),
    { needs },
  );
}

function checkNum(request: number, num: number, max: number): void {
  if (num <= max) return;
  const must = max === 0 ? 'must be 0' : `must be 0 or ${max}`;
  throw protocolError('PROTOCOL_VALUE', request, `num is ${num}, ${must}`);
}

/** KICK, CALL and ERR: bits 0–7 of the payload name the vring, bit 8 says that no descriptor comes along. */
function eventfd(use: (session: Session, vring: number, fd: number) => Promise<void>): RequestRow {
  return tell(U64, (session, value, message) => withEventfd(session, value, message, use), { maxFds: 1 });
}

async function withEventfd(
  session: Session,
  value: bigint,
  { request, fds }: Message,
  use: (session: Session, vring: number, fd: number) => Promise<void>,
): Promise<void> {
  const known = BigInt(VHOST_USER_VRING_IDX_MASK | VHOST_USER_VRING_NOFD_MASK);
  if ((value & ~known) !== 0n) {
    throw protocolError('PROTOCOL_VALUE', request, `0x${value.toString(16)} has bits above bit 8`);
  }
  const vring = checkVring(session, request, Number(value) & VHOST_USER_VRING_IDX_MASK);
  const expected = (Number(value) & VHOST_USER_VRING_NOFD_MASK) === 0 ? 1 : 0;
  if (fds.length !== expected) {
    throw protocolError('PROTOCOL_FD_COUNT', request, `${fds.length} file descriptors, must be ${expected}`);
  }
  if (expected === 0) return use(session, vring, NO_FD);
  checkEventfd(request, fds[0]);
  const [fd] = fds.splice(0);
  return use(session, vring, fd);
}

async function getBase(
  session: Session,
  { index }: VringState,
  { request }: Message,
  drain: boolean,
): Promise<VringState> {
  return { index, num: await session.device.getVringBase(checkVring(session, request, index), drain) };
}

export const VRING_ROWS = {
  /** DPDK's virtio-user names the rings that its driver did not set up, with 0 descriptors. */
  SET_VRING_NUM: state(async ({ device }, vring, num, request) => {
    if (num > VIRTQ_MAX_SIZE) {
      const problem = `a ring of ${num} descriptors, must be at most ${VIRTQ_MAX_SIZE}`;
      throw protocolError('PROTOCOL_VALUE', request, problem);
    }
    await device.setVringNum(vring, num);
  }),
  SET_VRING_ADDR: tell(VRING_ADDR, (session, { index, ...addresses }, { request }) =>
    session.device.setVringAddr(checkVring(session, request, index), addresses),
  ),
  SET_VRING_BASE: state(({ device }, vring, num) => device.setVringBase(vring, num)),
  GET_VRING_BASE: ask(VRING_STATE, VRING_STATE, (session, value, message) => getBase(session, value, message, true)),
  GET_VRING_BASE_SKIP_DRAIN: ask(
    VRING_STATE,
    VRING_STATE,
    (session, value, message) => {
      checkNum(message.request, value.num, 0);
      return getBase(session, value, message, false);
    },
    { needs: VHOST_USER_PROTOCOL_F_GET_VRING_BASE_SKIP_DRAIN },
  ),
  SET_VRING_KICK: eventfd(({ device }, vring, fd) => device.setVringKick(vring, fd)),
  SET_VRING_CALL: eventfd(({ device }, vring, fd) => device.setVringCall(vring, fd)),
  SET_VRING_ERR: eventfd(({ device }, vring, fd) => device.setVringErr(vring, fd)),
  SET_VRING_ENABLE: state(async ({ device }, vring, num, request) => {
    checkNum(request, num, 1);
    await device.setVringEnable(vring, num === 1);
  }),
  SET_VRING_ENDIAN: state(async ({ device }, vring, num, request) => {
    checkNum(request, num, 1);
    await device.setVringEndian(vring, num === 1);
  }, VHOST_USER_PROTOCOL_F_CROSS_ENDIAN),
  VRING_KICK: state(async ({ device }, vring, num, request) => {
    checkNum(request, num, 0);
    await device.kickVring(vring);
  }, VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS),
};
