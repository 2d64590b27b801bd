/**
 * The requests the back end serves, one row each: payload, descriptors, what it needs, what it does.
 * A handler checks the numbers, then calls the device; it answers with a payload or with nothing.
 * @see QEMU docs/interop/vhost-user.rst "Front-end message types"
 */
import { fstatSync } from 'node:fs';
import { isEventfd } from '../sys/eventfd.ts';
import { isLocalFile } from '../sys/memory.ts';
import {
  REQUEST,
  type RequestName,
  VHOST_USER_MAX_FDS,
  VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_VRING_IDX_MASK,
  VHOST_USER_VRING_NOFD_MASK,
} from '../uapi/vhost-user.ts';
import { featureMask, hasFeature, VHOST_USER_F_PROTOCOL_FEATURES } from '../uapi/virtio.ts';
import { VIRTQ_MAX_SIZE } from '../uapi/virtio-ring.ts';
import { NO_FD, type VhostDevice } from '../vhost/vhost-device.ts';
import {
  EMPTY,
  MEMORY_REGION,
  MEMORY_TABLE,
  type Message,
  type Payload,
  protocolError,
  type RegionPayload,
  U64,
  VRING_ADDR,
  VRING_STATE,
  type VringAddrPayload,
  type VringState,
} from './message.ts';
import { checkRegions } from './regions.ts';

/** The protocol features on offer. */
export const OFFERED_PROTOCOL_FEATURES = featureMask(
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
);

/** What one connection has agreed on. */
export interface Session {
  readonly device: VhostDevice;
  /** negotiated */
  protocolFeatures: bigint;
  /** the regions the device holds */
  regions: readonly RegionPayload[];
}

/** One request as the back end sees it. */
export interface RequestRow {
  /** descriptors that may come along */
  readonly maxFds: number;
  /** it has an answer of its own, so that a failure cannot be told by an acknowledgement */
  readonly answers: boolean;
  /** the protocol feature bit that must have been negotiated */
  readonly needs: number | undefined;
  /** Decodes, checks, acts. Resolves with the answer's payload, or undefined. Takes the descriptors it passes on out of `message.fds`. */
  run(session: Session, message: Message): Promise<Uint8Array | undefined>;
}

/** What a handler gets beside the payload: the request's number for messages, and its descriptors. */
type Handler<T, R> = (session: Session, value: T, message: Message) => Promise<R>;

interface RowOptions {
  maxFds?: number;
  needs?: number;
}

/** A request without an answer. */
function tell<T>(payload: Payload<T>, handle: Handler<T, void>, { maxFds = 0, needs }: RowOptions = {}): RequestRow {
  return {
    maxFds,
    needs,
    answers: false,
    async run(session, message) {
      await handle(session, payload.decode(message.request, message.payload), message);
      return undefined;
    },
  };
}

/** A request with an answer. */
function ask<T, R>(
  payload: Payload<T>,
  answer: Payload<R>,
  handle: Handler<T, R>,
  { needs }: RowOptions = {},
): RequestRow {
  return {
    maxFds: 0,
    needs,
    answers: true,
    async run(session, message) {
      return answer.encode(await handle(session, payload.decode(message.request, message.payload), message));
    },
  };
}

const SLOTS = { needs: VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS };

const ROWS: { readonly [K in RequestName]?: RequestRow } = {
  GET_FEATURES: ask(EMPTY, U64, async ({ device }) => offeredFeatures(device)),
  SET_FEATURES: tell(U64, setFeatures),
  SET_OWNER: tell(EMPTY, async () => {}),
  RESET_OWNER: tell(EMPTY, resetOwner),
  SET_MEM_TABLE: tell(MEMORY_TABLE, setMemTable, { maxFds: VHOST_USER_MAX_FDS }),
  SET_VRING_NUM: tell(VRING_STATE, setVringNum),
  SET_VRING_ADDR: tell(VRING_ADDR, setVringAddr),
  SET_VRING_BASE: tell(VRING_STATE, setVringBase),
  GET_VRING_BASE: ask(VRING_STATE, VRING_STATE, getVringBase),
  SET_VRING_KICK: tell(
    U64,
    (s, value, m) => withVringFd(s, value, m, (vring, fd) => s.device.setVringKick(vring, fd)),
    {
      maxFds: 1,
    },
  ),
  SET_VRING_CALL: tell(
    U64,
    (s, value, m) => withVringFd(s, value, m, (vring, fd) => s.device.setVringCall(vring, fd)),
    {
      maxFds: 1,
    },
  ),
  SET_VRING_ERR: tell(U64, (s, value, m) => withVringFd(s, value, m, (vring, fd) => s.device.setVringErr(vring, fd)), {
    maxFds: 1,
  }),
  GET_PROTOCOL_FEATURES: ask(EMPTY, U64, async () => OFFERED_PROTOCOL_FEATURES),
  SET_PROTOCOL_FEATURES: tell(U64, setProtocolFeatures),
  GET_QUEUE_NUM: ask(EMPTY, U64, async ({ device }) => BigInt(device.maxVrings >> 1)),
  SET_VRING_ENABLE: tell(VRING_STATE, setVringEnable),
  GET_MAX_MEM_SLOTS: ask(EMPTY, U64, async ({ device }) => BigInt(device.maxMemSlots), SLOTS),
  ADD_MEM_REG: tell(MEMORY_REGION, addMemReg, { ...SLOTS, maxFds: 1 }),
  // some front ends send the region's descriptor along; it is closed unused
  REM_MEM_REG: tell(MEMORY_REGION, remMemReg, { ...SLOTS, maxFds: 1 }),
};

/** The rows by request number. */
export const REQUESTS: ReadonlyMap<number, RequestRow> = new Map(
  (Object.keys(ROWS) as RequestName[]).map((name): [number, RequestRow] => [REQUEST[name], ROWS[name] as RequestRow]),
);

const offeredFeatures = (device: VhostDevice) => device.offeredFeatures | featureMask(VHOST_USER_F_PROTOCOL_FEATURES);

/** Fails if `features` has a bit that `offered` lacks. */
function checkOffered(request: number, features: bigint, offered: bigint): void {
  const extra = features & ~offered;
  if (extra === 0n) return;
  const bits = Array.from({ length: 64 }, (_, bit) => bit).filter((bit) => hasFeature(extra, bit));
  throw protocolError('PROTOCOL_FEATURES', request, `feature bits that were not offered: ${bits.join(', ')}`);
}

async function setFeatures({ device }: Session, features: bigint, { request }: Message): Promise<void> {
  checkOffered(request, features, offeredFeatures(device));
  const protocolFeatures = hasFeature(features, VHOST_USER_F_PROTOCOL_FEATURES);
  await device.setFeatures(features & ~featureMask(VHOST_USER_F_PROTOCOL_FEATURES), protocolFeatures);
}

async function setProtocolFeatures(session: Session, features: bigint, { request }: Message): Promise<void> {
  checkOffered(request, features, OFFERED_PROTOCOL_FEATURES);
  session.protocolFeatures = features;
}

async function resetOwner(session: Session): Promise<void> {
  await session.device.reset();
  session.regions = [];
}

/** The vring a payload names; its index is 32 bits wide and may be anything. */
function checkVring({ device }: Session, request: number, index: number): number {
  if (index < device.maxVrings) return index;
  throw protocolError('PROTOCOL_VRING_INDEX', request, `vring ${index}, must be below ${device.maxVrings}`);
}

/** DPDK's virtio-user names the rings that its driver did not set up, with 0 descriptors. */
async function setVringNum(session: Session, { index, num }: VringState, { request }: Message): Promise<void> {
  const vring = checkVring(session, request, index);
  if (num > VIRTQ_MAX_SIZE) {
    throw protocolError('PROTOCOL_VALUE', request, `a ring of ${num} descriptors, must be at most ${VIRTQ_MAX_SIZE}`);
  }
  await session.device.setVringNum(vring, num);
}

async function setVringAddr(session: Session, { index, ...addresses }: VringAddrPayload, { request }: Message) {
  await session.device.setVringAddr(checkVring(session, request, index), addresses);
}

async function setVringBase(session: Session, { index, num }: VringState, { request }: Message): Promise<void> {
  await session.device.setVringBase(checkVring(session, request, index), num);
}

async function getVringBase(session: Session, { index }: VringState, { request }: Message): Promise<VringState> {
  const num = await session.device.getVringBase(checkVring(session, request, index));
  return { index, num };
}

async function setVringEnable(session: Session, { index, num }: VringState, { request }: Message): Promise<void> {
  const vring = checkVring(session, request, index);
  if (num > 1) throw protocolError('PROTOCOL_VALUE', request, `num is ${num}, must be 0 or 1`);
  await session.device.setVringEnable(vring, num === 1);
}

/** KICK, CALL and ERR: bits 0–7 of `value` name the vring, bit 8 says that no descriptor comes along. */
async function withVringFd(
  session: Session,
  value: bigint,
  { request, fds }: Message,
  use: (vring: number, fd: number) => Promise<void>,
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
  if (expected === 0) return use(vring, NO_FD);
  if (!isEventfd(fds[0])) throw protocolError('PROTOCOL_FD_KIND', request, 'the file descriptor is not an eventfd');
  const [fd] = fds.splice(0);
  return use(vring, fd);
}

/** Memory may be a memfd or a file of tmpfs, hugetlbfs or a local disk; not a socket, a pipe, a device, or a file that somebody serves. */
function checkMemoryFd(request: number, fd: number, region: RegionPayload): void {
  if (isLocalFile(fd) && fstatSync(fd).isFile()) return;
  const at = `the region at guest address 0x${region.guestAddr.toString(16)}`;
  throw protocolError('PROTOCOL_FD_KIND', request, `the file descriptor of ${at} is not a memory file`);
}

async function setMemTable(session: Session, regions: readonly RegionPayload[], { request, fds }: Message) {
  if (fds.length !== regions.length) {
    const problem = `${regions.length} regions with ${fds.length} file descriptors, must be one each`;
    throw protocolError('PROTOCOL_FD_COUNT', request, problem);
  }
  if (regions.length === 0) {
    const hint = 'guest memory must be shared, in QEMU: -object memory-backend-memfd,id=mem,size=SIZE,share=on';
    throw protocolError('PROTOCOL_MEMORY', request, `no region; ${hint}`);
  }
  checkSlots(session, request, regions.length);
  checkRegions(request, [], regions);
  for (const [i, region] of regions.entries()) checkMemoryFd(request, fds[i], region);
  const taken = fds.splice(0);
  await session.device.setMemory(regions.map((region, i) => ({ ...region, fd: taken[i] })));
  session.regions = regions;
}

async function addMemReg(session: Session, region: RegionPayload, { request, fds }: Message): Promise<void> {
  if (fds.length !== 1) throw protocolError('PROTOCOL_FD_COUNT', request, 'no file descriptor, must be 1');
  checkSlots(session, request, session.regions.length + 1);
  checkRegions(request, session.regions, [region]);
  checkMemoryFd(request, fds[0], region);
  const [fd] = fds.splice(0);
  await session.device.addMemory({ ...region, fd });
  session.regions = [...session.regions, region];
}

function checkSlots({ device }: Session, request: number, n: number): void {
  if (n <= device.maxMemSlots) return;
  throw protocolError('PROTOCOL_MEMORY', request, `${n} regions, must be at most ${device.maxMemSlots}`);
}

async function remMemReg(session: Session, region: RegionPayload): Promise<void> {
  const { guestAddr, size, frontendAddr } = region;
  await session.device.removeMemory(guestAddr, size, frontendAddr);
  session.regions = session.regions.filter((other) => other.guestAddr !== guestAddr);
}
