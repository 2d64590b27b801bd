/**
 * Requests that move a guest, or let it live through the back end's death: dirty log, postcopy, the device's state, inflight records.
 * @see QEMU docs/interop/vhost-user.rst "Migration", "Migrating back-end state", "Inflight I/O tracking"
 */
import {
  VHOST_TRANSFER_STATE_DIRECTION_LOAD,
  VHOST_TRANSFER_STATE_DIRECTION_SAVE,
  VHOST_TRANSFER_STATE_PHASE_STOPPED,
  VHOST_USER_INFLIGHT,
  VHOST_USER_PROTOCOL_F_DEVICE_STATE,
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  VHOST_USER_PROTOCOL_F_LOG_SHMFD,
  VHOST_USER_PROTOCOL_F_PAGEFAULT,
  VHOST_USER_PROTOCOL_F_RARP,
  VHOST_USER_VRING_NOFD_MASK,
} from '../uapi/vhost-user.ts';
import { VIRTQ_MAX_SIZE } from '../uapi/virtio-ring.ts';
import type { StateDirection } from '../vhost/vhost-device.ts';
import { checkArea, checkEventfd, checkStream, onlyFd } from './descriptors.ts';
import { EMPTY, type Message, protocolError, U64 } from './message.ts';
import {
  type AreaPayload,
  INFLIGHT,
  INFLIGHT_BARE_SIZE,
  type InflightPayload,
  LOG,
  TRANSFER,
  type TransferPayload,
} from './payloads.ts';
import { type Answer, ask, row, type Session, tell } from './session.ts';

const REFUSED = 1n;
/** Answers of SET_DEVICE_STATE_FD: bits 0–7 tell an error, bit 8 that the front end's own descriptor is used. */
const NO_FD_RETURNED = BigInt(VHOST_USER_VRING_NOFD_MASK);

const refused = () => U64.encode(REFUSED);

/** QEMU does not look at the answer: only closing makes it notice that nothing is being logged. */
const LOG_FAILURE = (_: Message, asked: boolean) => (asked ? refused() : undefined);

async function setLogBase(session: Session, area: AreaPayload, { request, fds }: Message): Promise<bigint> {
  onlyFd(request, fds);
  checkArea(request, fds[0], area, 'the log');
  const [fd] = fds.splice(0);
  await session.device.setLog({ ...area, fd });
  return 0n;
}

async function setLogFd({ device }: Session, _: unknown, { request, fds }: Message): Promise<void> {
  checkEventfd(request, onlyFd(request, fds));
  const [fd] = fds.splice(0);
  await device.setLogFd(fd);
}

/** The bytes of the MAC address come first in the payload. */
async function sendRarp({ device }: Session, _: bigint, { payload }: Message): Promise<void> {
  await device.sendRarp(new Uint8Array(payload.buffer, payload.byteOffset, 6).slice());
}

function checkPostcopy(session: Session, request: number, isRight: boolean, must: string): void {
  if (isRight) return;
  throw protocolError('PROTOCOL_VALUE', request, `postcopy is ${session.postcopy}, must be ${must}`);
}

async function postcopyAdvise(session: Session, { request, payload }: Message): Promise<Answer> {
  EMPTY.decode(request, payload);
  const fd = await session.device.postcopyAdvise();
  session.postcopy = 'advised';
  return { payload: EMPTY.encode(), fds: [fd] };
}

async function postcopyListen(session: Session, _: unknown, { request }: Message): Promise<void> {
  checkPostcopy(session, request, session.postcopy === 'advised', 'advised');
  await session.device.postcopyListen();
  session.postcopy = 'listening';
}

/** A migration may fail before it listens. */
async function postcopyEnd(session: Session, _: unknown, { request }: Message): Promise<bigint> {
  checkPostcopy(session, request, session.postcopy !== 'off', 'advised or listening');
  await session.device.postcopyEnd();
  session.postcopy = 'off';
  return 0n;
}

/** The fewest bytes that the records of a vring may take: "QueueRegionSplit" and "DescStateSplit". A packed ring's take more. */
const INFLIGHT_HEAD_BYTES = 16;
const INFLIGHT_DESC_BYTES = 16;

function checkInflight({ device }: Session, request: number, { queues, queueSize }: InflightPayload): void {
  if (queues < 1 || queues > device.maxVrings) {
    throw protocolError('PROTOCOL_VALUE', request, `${queues} vrings, must be 1 to ${device.maxVrings}`);
  }
  if (queueSize >= 1 && queueSize <= VIRTQ_MAX_SIZE) return;
  const problem = `vrings of ${queueSize} descriptors, must be 1 to ${VIRTQ_MAX_SIZE}`;
  throw protocolError('PROTOCOL_VALUE', request, problem);
}

/** The answer is as long as the question, which may lack the padding of the C struct. */
function inflightAnswer({ payload }: Message, answer: InflightPayload): Uint8Array {
  const bare = payload.byteLength === INFLIGHT_BARE_SIZE;
  return INFLIGHT.encode(answer).subarray(0, bare ? INFLIGHT_BARE_SIZE : VHOST_USER_INFLIGHT.size);
}

async function getInflightFd(session: Session, message: Message): Promise<Answer> {
  const wanted = INFLIGHT.decode(message.request, message.payload);
  checkInflight(session, message.request, wanted);
  const { fd, size, fileOff } = session.device.getInflight(wanted.queues, wanted.queueSize);
  return { payload: inflightAnswer(message, { ...wanted, size, fileOff }), fds: [fd] };
}

async function setInflightFd(session: Session, inflight: InflightPayload, { request, fds }: Message): Promise<void> {
  onlyFd(request, fds);
  checkInflight(session, request, inflight);
  const { queues, queueSize, size, fileOff } = inflight;
  const need = queues * (INFLIGHT_HEAD_BYTES + queueSize * INFLIGHT_DESC_BYTES);
  if (size < need) {
    const problem = `${size} bytes for ${queues} vrings of ${queueSize} descriptors, must be at least ${need}`;
    throw protocolError('PROTOCOL_MEMORY', request, problem);
  }
  checkArea(request, fds[0], inflight, 'the inflight area');
  const [fd] = fds.splice(0);
  await session.device.setInflight({ fd, size, fileOff }, queues, queueSize);
}

const DIRECTIONS: ReadonlyMap<number, StateDirection> = new Map([
  [VHOST_TRANSFER_STATE_DIRECTION_SAVE, 'save'],
  [VHOST_TRANSFER_STATE_DIRECTION_LOAD, 'load'],
]);

async function setDeviceStateFd(session: Session, transfer: TransferPayload, { request, fds }: Message) {
  const direction = DIRECTIONS.get(transfer.direction);
  if (direction === undefined) {
    throw protocolError('PROTOCOL_VALUE', request, `direction ${transfer.direction}, must be 0 or 1`);
  }
  if (transfer.phase !== VHOST_TRANSFER_STATE_PHASE_STOPPED) {
    throw protocolError('PROTOCOL_VALUE', request, `phase ${transfer.phase}, must be 0`);
  }
  checkStream(request, onlyFd(request, fds));
  const [fd] = fds.splice(0);
  await session.device.transferState(direction, transfer.phase, fd);
  return NO_FD_RETURNED;
}

/** Nothing is answered to a front end that has gone; then nobody waits for the transfer either. */
async function checkDeviceState(session: Session): Promise<bigint> {
  await session.whileOpen(session.device.checkState());
  return 0n;
}

const PAGEFAULT = { needs: VHOST_USER_PROTOCOL_F_PAGEFAULT };
const INFLIGHT_SHMFD = { needs: VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD };
const STATE = { needs: VHOST_USER_PROTOCOL_F_DEVICE_STATE };

export const MIGRATION_ROWS = {
  SET_LOG_BASE: ask(LOG, U64, setLogBase, {
    maxFds: 1,
    needs: VHOST_USER_PROTOCOL_F_LOG_SHMFD,
    failure: LOG_FAILURE,
  }),
  SET_LOG_FD: tell(EMPTY, setLogFd, { maxFds: 1 }),
  SEND_RARP: tell(U64, sendRarp, { needs: VHOST_USER_PROTOCOL_F_RARP }),
  // without a descriptor the front end gives postcopy up
  POSTCOPY_ADVISE: row(postcopyAdvise, true, { ...PAGEFAULT, failure: () => EMPTY.encode() }),
  // QEMU asks for an acknowledgement, REPLY_ACK or not
  POSTCOPY_LISTEN: tell(EMPTY, postcopyListen, { ...PAGEFAULT, alwaysAck: true }),
  POSTCOPY_END: ask(EMPTY, U64, postcopyEnd, { ...PAGEFAULT, failure: refused }),
  // without bytes to map the front end goes without
  GET_INFLIGHT_FD: row(getInflightFd, true, {
    ...INFLIGHT_SHMFD,
    failure: (message) => inflightAnswer(message, { size: 0, fileOff: 0, queues: 0, queueSize: 0 }),
  }),
  SET_INFLIGHT_FD: tell(INFLIGHT, setInflightFd, { ...INFLIGHT_SHMFD, maxFds: 1 }),
  SET_DEVICE_STATE_FD: ask(TRANSFER, U64, setDeviceStateFd, {
    ...STATE,
    maxFds: 1,
    failure: () => U64.encode(NO_FD_RETURNED | REFUSED),
  }),
  CHECK_DEVICE_STATE: ask(EMPTY, U64, checkDeviceState, { ...STATE, failure: refused }),
};
