/**
 * A network device's own state as bytes, for a migration to another switch, perhaps of another version: numbers are little endian,
 * and what a later version adds comes behind what is here.
 */
import { ProtocolError } from '../errors.ts';
import { packedLayout } from '../uapi/layout.ts';

/** `macs` addresses of 6 bytes each follow, and since version 2 those in VLANs that the guest tells apart by tags. */
const HEAD = packedLayout('net_state', {
  magic: 'u32',
  version: 'u16',
  mtu: 'u16',
  mac: ['u8', 6],
  status: 'u16',
  macs: 'u16',
});
/** How many addresses in such VLANs follow: 6 bytes each, and 2 of the VLAN. */
const TAGGED_HEAD = packedLayout('net_state_tagged', { count: 'u16' });
/** "VSNS" */
const MAGIC = 0x534e5356;
const VERSION = 2;
const OLDEST_VERSION = 1;
const MAC_BYTES = 6;
const TAGGED_BYTES = MAC_BYTES + 2;
/** Addresses that a state tells, of each of the two sorts; further ones are learned anew. */
const MAX_MACS = 4096;
const MAX_VID = 4094;

/** An address that a guest uses. */
export interface GuestAddress {
  /** 6 bytes */
  readonly mac: Uint8Array;
  /** the VLAN, 1 to 4094, that the guest's own tags say; 0: that of its untagged frames */
  readonly vlan: number;
}

export interface NetState {
  readonly mtu: number;
  /** the device's address in config space, 6 bytes */
  readonly mac: Uint8Array;
  /** config space: VIRTIO_NET_S_… */
  readonly status: number;
  /** the addresses that the guest has been heard to use */
  readonly addresses: readonly GuestAddress[];
}

export function encodeNetState({ mtu, mac, status, addresses }: NetState): Uint8Array {
  const told = addresses.filter(({ vlan }) => vlan === 0).slice(0, MAX_MACS);
  const tagged = addresses.filter(({ vlan }) => vlan !== 0).slice(0, MAX_MACS);
  const taggedOff = HEAD.size + MAC_BYTES * told.length;
  const bytes = new Uint8Array(taggedOff + TAGGED_HEAD.size + TAGGED_BYTES * tagged.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(HEAD.off.magic, MAGIC, true);
  view.setUint16(HEAD.off.version, VERSION, true);
  view.setUint16(HEAD.off.mtu, mtu, true);
  bytes.set(mac, HEAD.off.mac);
  view.setUint16(HEAD.off.status, status, true);
  view.setUint16(HEAD.off.macs, told.length, true);
  for (const [i, address] of told.entries()) bytes.set(address.mac, HEAD.size + MAC_BYTES * i);
  view.setUint16(taggedOff + TAGGED_HEAD.off.count, tagged.length, true);
  for (const [i, address] of tagged.entries()) {
    const at = taggedOff + TAGGED_HEAD.size + TAGGED_BYTES * i;
    bytes.set(address.mac, at);
    view.setUint16(at + MAC_BYTES, address.vlan, true);
  }
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
  if (version < OLDEST_VERSION) fail(`state of version ${version} is not understood`);
  const count = view.getUint16(HEAD.off.macs, true);
  if (count > MAX_MACS || bytes.length < HEAD.size + MAC_BYTES * count)
    fail(`${count} addresses do not fit in ${bytes.length} bytes`);
  const address = (at: number) => new Uint8Array(bytes.subarray(at, at + MAC_BYTES));
  const addresses = Array.from({ length: count }, (_, i) => ({ mac: address(HEAD.size + MAC_BYTES * i), vlan: 0 }));
  const taggedOff = HEAD.size + MAC_BYTES * count;
  if (version > OLDEST_VERSION) {
    const first = taggedOff + TAGGED_HEAD.size;
    const tagged = bytes.length < first ? 0 : view.getUint16(taggedOff + TAGGED_HEAD.off.count, true);
    if (tagged > MAX_MACS || bytes.length < first + TAGGED_BYTES * tagged)
      fail(`${tagged} addresses in VLANs do not fit in ${bytes.length} bytes`);
    for (let at = first; at < first + TAGGED_BYTES * tagged; at += TAGGED_BYTES) {
      const vlan = view.getUint16(at + MAC_BYTES, true);
      if (vlan < 1 || vlan > MAX_VID) fail(`there is no VLAN ${vlan}`);
      addresses.push({ mac: address(at), vlan });
    }
  }
  return {
    mtu: view.getUint16(HEAD.off.mtu, true),
    mac: address(HEAD.off.mac),
    status: view.getUint16(HEAD.off.status, true),
    addresses,
  };
}
