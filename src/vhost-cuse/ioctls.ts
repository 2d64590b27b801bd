/**
 * The ioctls that are served, one row each: what is copied from the caller's memory and what to it, and what is done.
 * @see linux/vhost.h
 */
import { ProtocolError } from '../errors.ts';
import {
  VHOST_GET_BACKEND_FEATURES,
  VHOST_GET_FEATURES,
  VHOST_GET_VRING_BASE,
  VHOST_MEMORY_TABLE,
  VHOST_MEMORY_TABLE_REGION,
  VHOST_NET_SET_BACKEND,
  VHOST_RESET_OWNER,
  VHOST_SET_BACKEND_FEATURES,
  VHOST_SET_FEATURES,
  VHOST_SET_LOG_BASE,
  VHOST_SET_LOG_FD,
  VHOST_SET_MEM_TABLE,
  VHOST_SET_OWNER,
  VHOST_SET_VRING_ADDR,
  VHOST_SET_VRING_BASE,
  VHOST_SET_VRING_CALL,
  VHOST_SET_VRING_ERR,
  VHOST_SET_VRING_KICK,
  VHOST_SET_VRING_NUM,
  VHOST_VRING_FILE,
} from '../uapi/vhost-ioctl.ts';
import { VHOST_VRING_ADDR, VHOST_VRING_STATE } from '../uapi/vhost-user.ts';
import { getSafe64, type Payload, U64, VRING_ADDR, VRING_STATE } from '../vhost-user/message.ts';
import type { OpenerRegion } from './opener-memory.ts';
import type { VhostSession, VringFile } from './vhost-session.ts';

/** Regions that a table is read for: no device holds more. */
const MAX_REGIONS = 509;

/** One ioctl. */
export interface IoctlRow {
  readonly name: string;
  /** bytes to be copied from the caller's memory; where the first of them tell how many there are, `inputSize` does from those */
  readonly input: number;
  inputSize?(head: DataView): number;
  /** bytes that are copied to the caller's memory */
  readonly output: number;
  /** only the owner may */
  readonly owner: boolean;
  /** @returns `output` bytes. Throws ProtocolError, SysError. */
  run(session: VhostSession, data: DataView, thread: number): Promise<Uint8Array>;
}

const NOTHING = new Uint8Array(0);
const U64_BYTES = 8;
const S32_BYTES = 4;

function told<T>(
  name: string,
  { decode }: Pick<Payload<T>, 'decode'>,
  input: number,
  tell: (session: VhostSession, value: T) => Promise<void> | void,
): IoctlRow {
  const run: IoctlRow['run'] = async (session, data) => {
    await tell(session, decode(name, data));
    return NOTHING;
  };
  return { name, input, output: 0, owner: true, run };
}

/** Features may be told before there is an owner. */
const byAnybody = (row: IoctlRow): IoctlRow => ({ ...row, owner: false });

function asked(name: string, get: (session: VhostSession) => bigint): IoctlRow {
  const run: IoctlRow['run'] = async (session) => U64.encode(get(session));
  return { name, input: 0, output: U64_BYTES, owner: false, run };
}

const FILE: Pick<Payload<VringFile>, 'decode'> = {
  decode: (_, view) => ({
    index: view.getUint32(VHOST_VRING_FILE.off.index, true),
    fd: view.getInt32(VHOST_VRING_FILE.off.fd, true),
  }),
};

const ADDRESS: Pick<Payload<number>, 'decode'> = { decode: (name, view) => getSafe64(name, view, 0, 'address') };
const DESCRIPTOR: Pick<Payload<number>, 'decode'> = { decode: (_, view) => view.getInt32(0, true) };

function file(name: string, use: (session: VhostSession, file: VringFile) => Promise<void>): IoctlRow {
  return told(name, FILE, VHOST_VRING_FILE.size, use);
}

/** Bytes of a table with as many regions as its head says. */
function tableSize(head: DataView): number {
  const n = head.getUint32(VHOST_MEMORY_TABLE.off.nregions, true);
  if (n > MAX_REGIONS)
    throw new ProtocolError('OPENER_TOO_MUCH', 'SET_MEM_TABLE', `${n} regions, must be at most ${MAX_REGIONS}`);
  return VHOST_MEMORY_TABLE.size + n * VHOST_MEMORY_TABLE_REGION.size;
}

const REGION = VHOST_MEMORY_TABLE_REGION.off;

const TABLE: Pick<Payload<readonly OpenerRegion[]>, 'decode'> = {
  decode(name, view) {
    if (view.getUint32(VHOST_MEMORY_TABLE.off.padding, true) !== 0)
      throw new ProtocolError('PROTOCOL_FEATURES', 'SET_MEM_TABLE', 'the padding is not 0');
    const n = (view.byteLength - VHOST_MEMORY_TABLE.size) / VHOST_MEMORY_TABLE_REGION.size;
    return Array.from({ length: n }, (_, i) => {
      const at = VHOST_MEMORY_TABLE.size + i * VHOST_MEMORY_TABLE_REGION.size;
      return {
        guestAddr: getSafe64(name, view, at + REGION.guest_phys_addr, 'guest address'),
        size: getSafe64(name, view, at + REGION.memory_size, 'region size'),
        frontendAddr: getSafe64(name, view, at + REGION.userspace_addr, 'user address'),
      };
    });
  },
};

/** An ioctl without an argument. */
function plain(name: string, owner: boolean, run: (session: VhostSession, thread: number) => Promise<void> | void) {
  const row: IoctlRow = {
    name,
    input: 0,
    output: 0,
    owner,
    run: async (session, _, thread) => {
      await run(session, thread);
      return NOTHING;
    },
  };
  return row;
}

/** The rows by the ioctl's number. */
export const IOCTLS: ReadonlyMap<number, IoctlRow> = new Map([
  [VHOST_GET_FEATURES, asked('GET_FEATURES', ({ offeredFeatures }) => offeredFeatures)],
  [VHOST_SET_FEATURES, byAnybody(told('SET_FEATURES', U64, U64_BYTES, (session, bits) => session.setFeatures(bits)))],
  [VHOST_GET_BACKEND_FEATURES, asked('GET_BACKEND_FEATURES', ({ backendFeatures }) => backendFeatures)],
  [
    VHOST_SET_BACKEND_FEATURES,
    byAnybody(told('SET_BACKEND_FEATURES', U64, U64_BYTES, (session, bits) => session.setBackendFeatures(bits))),
  ],
  [VHOST_SET_OWNER, plain('SET_OWNER', false, (session, thread) => session.setOwner(thread))],
  [VHOST_RESET_OWNER, plain('RESET_OWNER', true, (session) => session.reset())],
  [
    VHOST_SET_MEM_TABLE,
    {
      ...told('SET_MEM_TABLE', TABLE, VHOST_MEMORY_TABLE.size, (session, table) => session.setMemTable(table)),
      inputSize: tableSize,
    },
  ],
  [VHOST_SET_LOG_BASE, told('SET_LOG_BASE', ADDRESS, U64_BYTES, (session, base) => session.setLogBase(base))],
  [VHOST_SET_LOG_FD, told('SET_LOG_FD', DESCRIPTOR, S32_BYTES, (session, fd) => session.setLogFd(fd))],
  [
    VHOST_SET_VRING_NUM,
    told('SET_VRING_NUM', VRING_STATE, VHOST_VRING_STATE.size, (session, state) => session.setVringNum(state)),
  ],
  [
    VHOST_SET_VRING_ADDR,
    told('SET_VRING_ADDR', VRING_ADDR, VHOST_VRING_ADDR.size, (session, address) => session.setVringAddr(address)),
  ],
  [
    VHOST_SET_VRING_BASE,
    told('SET_VRING_BASE', VRING_STATE, VHOST_VRING_STATE.size, (session, state) => session.setVringBase(state)),
  ],
  [
    VHOST_GET_VRING_BASE,
    {
      name: 'GET_VRING_BASE',
      input: VHOST_VRING_STATE.size,
      output: VHOST_VRING_STATE.size,
      owner: true,
      run: async (session, data) =>
        VRING_STATE.encode(await session.getVringBase(VRING_STATE.decode('GET_VRING_BASE', data))),
    },
  ],
  [VHOST_SET_VRING_KICK, file('SET_VRING_KICK', (session, kick) => session.setVringKick(kick))],
  [VHOST_SET_VRING_CALL, file('SET_VRING_CALL', (session, call) => session.setVringCall(call))],
  [VHOST_SET_VRING_ERR, file('SET_VRING_ERR', (session, err) => session.setVringErr(err))],
  [VHOST_NET_SET_BACKEND, file('NET_SET_BACKEND', (session, backend) => session.setBackend(backend))],
]);
