/**
 * Requests about guest memory, in ordinary times and in postcopy migration, when each is answered with the addresses that the memory
 * has here, so that the front end can serve page faults.
 * @see QEMU docs/interop/vhost-user.rst "Memory access", "Migration"
 */
import { fstatSync } from 'node:fs';
import {
  REQUEST,
  VHOST_USER_MAX_FDS,
  VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  VHOST_USER_PROTOCOL_F_GPA_ADDRESSES,
} from '../uapi/vhost-user.ts';
import { checkMemoryFd, onlyFd } from './descriptors.ts';
import {
  ClosingError,
  EMPTY,
  MEMORY_REGION,
  MEMORY_TABLE,
  type Message,
  protocolError,
  type RegionPayload,
  U64,
} from './message.ts';
import { checkRegions } from './regions.ts';
import { type Answer, ask, negotiated, type RequestRow, row, type Session, type SessionRegion } from './session.ts';

const SLOTS = { needs: VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS };
/** Requests that may come while the addresses are not acknowledged. */
const WHILE_UNACKNOWLEDGED: readonly number[] = [REQUEST.SET_MEM_TABLE, REQUEST.ADD_MEM_REG, REQUEST.REM_MEM_REG];

/** Fails if the front end has to acknowledge the addresses of its memory first. */
export function checkAcknowledged(session: Session, request: number): void {
  if (session.postcopy !== 'addresses' || WHILE_UNACKNOWLEDGED.includes(request)) return;
  throw protocolError('PROTOCOL_VALUE', request, 'the addresses of guest memory have not been acknowledged');
}

/** An acknowledgement of the addresses is the request once more, empty as the specification has it, or a 0 of 64 bits as QEMU sends it. */
const isAcknowledgement = ({ postcopy }: Session, { payload }: Message) =>
  postcopy === 'addresses' && (payload.byteLength === 0 || payload.byteLength === 8);

async function acknowledge(session: Session, { request, payload, fds }: Message): Promise<undefined> {
  if (fds.length > 0) {
    throw protocolError('PROTOCOL_FD_COUNT', request, `${fds.length} file descriptors, there must be none`);
  }
  if (payload.byteLength === 8 && U64.decode(request, payload) !== 0n) {
    throw new ClosingError('PROTOCOL_VALUE', request, 'the front end cannot use the addresses of its memory');
  }
  await session.device.postcopyReady();
  session.postcopy = 'listening';
}

/** A row for which, in postcopy, the same request acknowledges the addresses. */
function memoryRow(run: RequestRow['run'], options: { maxFds: number; needs?: number }): RequestRow {
  return row(
    (session, message) => (isAcknowledgement(session, message) ? acknowledge(session, message) : run(session, message)),
    false,
    options,
  );
}

/** What is being added must not collide with `present`, and must be addressed as was negotiated. */
function checkAdded(
  session: Session,
  request: number,
  present: readonly RegionPayload[],
  added: readonly RegionPayload[],
): void {
  const { maxMemSlots } = session.device;
  const n = present.length + added.length;
  if (n > maxMemSlots) throw protocolError('PROTOCOL_MEMORY', request, `${n} regions, must be at most ${maxMemSlots}`);
  checkRegions(request, present, added);
  if (!negotiated(session, VHOST_USER_PROTOCOL_F_GPA_ADDRESSES)) return;
  const other = added.find(({ guestAddr, frontendAddr }) => guestAddr !== frontendAddr);
  if (other === undefined) return;
  const where = `the region at guest address 0x${other.guestAddr.toString(16)}`;
  throw protocolError('PROTOCOL_MEMORY', request, `${where} has another user address, must be the same: GPA_ADDRESSES`);
}

function checkFd(request: number, fd: number, { guestAddr }: RegionPayload): void {
  checkMemoryFd(request, fd, `the region at guest address 0x${guestAddr.toString(16)}`);
}

function sessionRegion(region: RegionPayload, fd: number): SessionRegion {
  const { dev, ino } = fstatSync(fd);
  return { ...region, dev, ino, added: 1 };
}

function isSame(a: SessionRegion, b: SessionRegion): boolean {
  const keys = ['guestAddr', 'size', 'frontendAddr', 'fileOff', 'dev', 'ino'] as const;
  return keys.every((key) => a[key] === b[key]);
}

/** The request's own payload with the addresses that the regions have here. */
function addressAnswer(session: Session, { payload }: Message, encoded: Uint8Array): Answer {
  session.postcopy = 'addresses';
  const answer = new Uint8Array(payload.byteLength);
  answer.set(encoded);
  return { payload: answer };
}

const inPostcopy = ({ postcopy }: Session) => postcopy === 'listening' || postcopy === 'addresses';

async function setMemTable(session: Session, message: Message): Promise<Answer | undefined> {
  const { request, payload, fds } = message;
  const regions = MEMORY_TABLE.decode(request, payload);
  if (fds.length !== regions.length) {
    const problem = `${regions.length} regions with ${fds.length} file descriptors, must be one each`;
    throw protocolError('PROTOCOL_FD_COUNT', request, problem);
  }
  if (regions.length === 0) {
    const hint = 'guest memory must be shared, in QEMU: -object memory-backend-memfd,id=mem,size=SIZE,share=on';
    throw protocolError('PROTOCOL_MEMORY', request, `no region; ${hint}`);
  }
  checkAdded(session, request, [], regions);
  for (const [i, region] of regions.entries()) checkFd(request, fds[i], region);
  const held = regions.map((region, i) => sessionRegion(region, fds[i]));
  const taken = fds.splice(0);
  await session.device.setMemory(regions.map((region, i) => ({ ...region, fd: taken[i] })));
  session.regions = held;
  if (!inPostcopy(session)) return undefined;
  const addresses = session.device.postcopyAddresses();
  const mapped = regions.map((region, i) => ({ ...region, frontendAddr: Number(addresses[i]) }));
  return addressAnswer(session, message, MEMORY_TABLE.encode(mapped));
}

/** With memory slots the specification leaves postcopy open; QEMU does it as it does with a table, one answer a region. */
async function addMemReg(session: Session, message: Message): Promise<Answer | undefined> {
  const { request, payload, fds } = message;
  const region = MEMORY_REGION.decode(request, payload);
  onlyFd(request, fds);
  checkFd(request, fds[0], region);
  const held = sessionRegion(region, fds[0]);
  let at = session.regions.findIndex((other) => isSame(other, held));
  if (at >= 0) session.regions = session.regions.with(at, { ...held, added: session.regions[at].added + 1 });
  else {
    checkAdded(session, request, session.regions, [region]);
    const [fd] = fds.splice(0);
    await session.device.addMemory({ ...region, fd });
    at = session.regions.length;
    session.regions = [...session.regions, held];
  }
  if (!inPostcopy(session)) return undefined;
  const frontendAddr = Number(session.device.postcopyAddresses()[at]);
  return addressAnswer(session, message, MEMORY_REGION.encode({ ...region, frontendAddr }));
}

async function remMemReg(session: Session, { request, payload }: Message): Promise<undefined> {
  const { guestAddr, size, frontendAddr } = MEMORY_REGION.decode(request, payload);
  const at = session.regions.findIndex((held) => held.guestAddr === guestAddr && held.size === size);
  if (at >= 0 && session.regions[at].added > 1) {
    const held = session.regions[at];
    session.regions = session.regions.with(at, { ...held, added: held.added - 1 });
    return;
  }
  await session.device.removeMemory(guestAddr, size, frontendAddr);
  session.regions = session.regions.filter((other) => other.guestAddr !== guestAddr);
}

export const MEMORY_ROWS = {
  SET_MEM_TABLE: memoryRow(setMemTable, { maxFds: VHOST_USER_MAX_FDS }),
  GET_MAX_MEM_SLOTS: ask(EMPTY, U64, async ({ device }) => BigInt(device.maxMemSlots), SLOTS),
  ADD_MEM_REG: memoryRow(addMemReg, { ...SLOTS, maxFds: 1 }),
  // some front ends send the region's descriptor along; it is closed unused
  REM_MEM_REG: memoryRow(remMemReg, { ...SLOTS, maxFds: 1 }),
};
