/**
 * A network device's own state as bytes, for a migration to another switch, perhaps of another version: numbers are little endian,
 * and what a later version adds comes behind what is here.
 */
import { ProtocolError } from '../errors.ts';
import { packedLayout } from '../uapi/layout.ts';

/** `macs` addresses of 6 bytes each follow. */
const HEAD = packedLayout('net_state', {
  magic: 'u32',
  version: 'u16',
  mtu: 'u16',
  mac: ['u8', 6],
  status: 'u16',
  macs: 'u16',
});
/** "VSNS" */
const MAGIC = 0x534e5356;
const VERSION = 1;
const MAC_BYTES = 6;
/** Addresses that a state tells; further ones are learned anew. */
const MAX_MACS = 4096;

export interface NetState {
  readonly mtu: number;
  /** the device's address in config space, 6 bytes */
  readonly mac: Uint8Array;
  /** config space: VIRTIO_NET_S_… */
  readonly status: number;
  /** the addresses that the guest has been heard to use, 6 bytes each */
  readonly macs: readonly Uint8Array[];
}

export function encodeNetState({ mtu, mac, status, macs }: NetState): Uint8Array {
  const told = macs.slice(0, MAX_MACS);
  const bytes = new Uint8Array(HEAD.size + MAC_BYTES * told.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(HEAD.off.magic, MAGIC, true);
  view.setUint16(HEAD.off.version, VERSION, true);
  view.setUint16(HEAD.off.mtu, mtu, true);
  bytes.set(mac, HEAD.off.mac);
  view.setUint16(HEAD.off.status, status, true);
  view.setUint16(HEAD.off.macs, told.length, true);
  for (const [i, address] of told.entries()) bytes.set(address, HEAD.size + MAC_BYTES * i);
  return bytes;
}

/** @throws ProtocolError if the bytes are no state that this version understands */
export function decodeNetState(bytes: Uint8Array): NetState {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const fail = (problem: string): never => {
    throw new ProtocolError('BAD_STATE', 'CHECK_DEVICE_STATE', problem);
  };
  if (bytes.length < HEAD.size) fail(`${bytes.length} bytes are too few for a network device's state`);
  if (view.getUint32(HEAD.off.magic, true) !== MAGIC) fail('this is no network device’s state');
  const version = view.getUint16(HEAD.off.version, true);
  if (version < VERSION) fail(`state of version ${version} is not understood`);
  const count = view.getUint16(HEAD.off.macs, true);
  if (count > MAX_MACS || bytes.length < HEAD.size + MAC_BYTES * count)
    fail(`${count} addresses do not fit in ${bytes.length} bytes`);
  const address = (at: number) => new Uint8Array(bytes.subarray(at, at + MAC_BYTES));
  return {
    mtu: view.getUint16(HEAD.off.mtu, true),
    mac: address(HEAD.off.mac),
    status: view.getUint16(HEAD.off.status, true),
    macs: Array.from({ length: count }, (_, i) => address(HEAD.size + MAC_BYTES * i)),
  };
}
