/**
 * How network interfaces are set, as ethtool(8) shows it, and the filters of cards that have them.
 */
import { closeSync } from 'node:fs';
import {
  ETH_FLAG_RXVLAN,
  ETHER_FLOW,
  ETHTOOL_FLOW_EXT,
  ETHTOOL_GFLAGS,
  ETHTOOL_GRXCLSRLALL,
  ETHTOOL_GRXCLSRLCNT,
  ETHTOOL_RX_FLOW_SPEC,
  ETHTOOL_RXNFC,
  ETHTOOL_SRXCLSRLDEL,
  ETHTOOL_SRXCLSRLINS,
  ETHTOOL_VALUE,
  FLOW_EXT,
  IFNAMSIZ,
  IFREQ,
  RX_CLS_LOC_SPECIAL,
  SIOCETHTOOL,
} from '../uapi/ethtool.ts';
import { ETHHDR } from '../uapi/ip.ts';
import { addressOf, check, errno, libc } from './libc.ts';

const AF_INET = 2;
const SOCK_DGRAM = 2;
const SOCK_CLOEXEC = 0o2000000;
const EOPNOTSUPP = 95;
const MAC_BYTES = 6;
const VID_MASK = 0xfff;
/** Filters of one card that are asked for; none has so many. */
const MAX_FILTERS = 65536;

const c = {
  socket: libc.func('socket', 'int', ['int', 'int', 'int']),
  ioctl: libc.func('ioctl', 'int', ['int', 'ulong', 'void *']),
};

/** A socket to ask by, of the calling thread's network namespace; the caller owns it. */
const askingSocket = () => check(c.socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), 'socket');

/** Asks by `fd` about an interface. @param argument what the request begins with its number in; the answer goes there @returns the status */
function ask(fd: number, name: string, argument: ArrayBufferView): number {
  const request = new DataView(new ArrayBuffer(IFREQ.size));
  new Uint8Array(request.buffer).set(Buffer.from(name).subarray(0, IFNAMSIZ - 1), IFREQ.off.ifr_name);
  request.setBigUint64(IFREQ.off.ifr_data, addressOf(argument), true);
  return c.ioctl(fd, SIOCETHTOOL, request);
}

/**
 * True if the interface, of the calling thread's network namespace, takes VLAN tags off the frames it receives. Throws SysError (ENODEV).
 */
export function takesTagsOff(name: string): boolean {
  const value = Uint32Array.of(ETHTOOL_GFLAGS, 0);
  const fd = askingSocket();
  try {
    const status = ask(fd, name, value);
    if (status < 0 && errno() === EOPNOTSUPP) return false;
    check(status, 'SIOCETHTOOL', name);
    return (value[ETHTOOL_VALUE.off.data / 4] & ETH_FLAG_RXVLAN) !== 0;
  } finally {
    closeSync(fd);
  }
}

/** Frames to an address come by a queue. */
export interface RxFilter {
  /** 6 bytes */
  readonly mac: Uint8Array;
  /** those with this VLAN's tag; 0: with any, or with none */
  readonly vlan: number;
  readonly queue: number;
  /** its place in the card's table, whose first match counts; or RX_CLS_LOC_… */
  readonly location: number;
}

/** struct ethtool_rxnfc that inserts a filter. */
export function insertRequest({ mac, vlan, queue, location }: RxFilter): DataView {
  const view = new DataView(new ArrayBuffer(ETHTOOL_RXNFC.size));
  const bytes = new Uint8Array(view.buffer);
  const { off } = ETHTOOL_RX_FLOW_SPEC;
  const at = ETHTOOL_RXNFC.off.fs;
  view.setUint32(ETHTOOL_RXNFC.off.cmd, ETHTOOL_SRXCLSRLINS, true);
  view.setUint32(at + off.flow_type, vlan === 0 ? ETHER_FLOW : ETHER_FLOW | FLOW_EXT, true);
  bytes.set(mac, at + off.h_u + ETHHDR.off.h_dest);
  bytes.fill(0xff, at + off.m_u + ETHHDR.off.h_dest, at + off.m_u + ETHHDR.off.h_dest + MAC_BYTES);
  if (vlan !== 0) {
    view.setUint16(at + off.h_ext + ETHTOOL_FLOW_EXT.off.vlan_tci, vlan);
    view.setUint16(at + off.m_ext + ETHTOOL_FLOW_EXT.off.vlan_tci, VID_MASK);
  }
  view.setBigUint64(at + off.ring_cookie, BigInt(queue), true);
  view.setUint32(at + off.location, location, true);
  return view;
}

/** The filters of a card, which stay there until they are removed. */
export class RxFilters {
  readonly #name: string;
  readonly #fd: number;

  /** @param name an interface of the calling thread's network namespace */
  constructor(name: string) {
    this.#name = name;
    this.#fd = askingSocket();
  }

  #ask(argument: DataView, what: string): DataView {
    check(ask(this.#fd, this.#name, argument), 'SIOCETHTOOL', `${what} ${this.#name}`);
    return argument;
  }

  /**
   * What the table has: the locations that are taken, how many there are, and whether it takes RX_CLS_LOC_FIRST and …_LAST. Throws
   * SysError: ENOTSUP: the card has none.
   */
  table(): { taken: number[]; size: number; special: boolean } {
    const { off, size } = ETHTOOL_RXNFC;
    const count = new DataView(new ArrayBuffer(size));
    count.setUint32(off.cmd, ETHTOOL_GRXCLSRLCNT, true);
    this.#ask(count, 'ETHTOOL_GRXCLSRLCNT');
    const special = (count.getUint32(off.data, true) & RX_CLS_LOC_SPECIAL) !== 0;
    const most = Math.min(count.getUint32(off.rule_cnt, true), MAX_FILTERS);
    // behind the count, without padding
    const first = off.rule_cnt + 4;
    const all = new DataView(new ArrayBuffer(size + 4 * most));
    all.setUint32(off.cmd, ETHTOOL_GRXCLSRLALL, true);
    all.setUint32(off.rule_cnt, most, true);
    this.#ask(all, 'ETHTOOL_GRXCLSRLALL');
    const n = Math.min(all.getUint32(off.rule_cnt, true), most);
    const taken = Array.from({ length: n }, (_, i) => all.getUint32(first + 4 * i, true));
    return { taken, size: all.getUint32(off.data, true), special };
  }

  /** @returns where it is in the table. Throws SysError: ENOSPC, EEXIST, EINVAL, ENOTSUP as the driver likes */
  insert(filter: RxFilter): number {
    const answer = this.#ask(insertRequest(filter), 'ETHTOOL_SRXCLSRLINS');
    return answer.getUint32(ETHTOOL_RXNFC.off.fs + ETHTOOL_RX_FLOW_SPEC.off.location, true);
  }

  /** Throws SysError: ENOENT, ENODEV. */
  remove(location: number): void {
    const request = new DataView(new ArrayBuffer(ETHTOOL_RXNFC.size));
    request.setUint32(ETHTOOL_RXNFC.off.cmd, ETHTOOL_SRXCLSRLDEL, true);
    request.setUint32(ETHTOOL_RXNFC.off.fs + ETHTOOL_RX_FLOW_SPEC.off.location, location, true);
    this.#ask(request, 'ETHTOOL_SRXCLSRLDEL');
  }

  close(): void {
    closeSync(this.#fd);
  }
}
