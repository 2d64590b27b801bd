/**
 * A network of this test's own: the calling thread moves to a new network namespace, which is gone with the process, however it ends. What
 * the thread opens from then on, and programs it starts, are in there. And a raw socket on an interface, for the other side of a port.
 */
import { closeSync } from 'node:fs';
import koffi from 'koffi';
import { findInterface } from '../../src/sys/netlink.ts';
import { inNetns } from '../../src/sys/netns.ts';
import { IFREQ, SIOCETHTOOL } from '../../src/uapi/ethtool.ts';
import { ip } from './netns.ts';

const CLONE_NEWNET = 0x40000000;
const AF_INET = 2;
const SOCK_DGRAM = 2;
const ETHTOOL_STXCSUM = 0x17;
const AF_PACKET = 17;
const SOCK_RAW = 3;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;
const SOL_SOCKET = 1;
const SO_SNDBUFFORCE = 32;
const SO_RCVBUFFORCE = 33;
const SOL_PACKET = 263;
const PACKET_IGNORE_OUTGOING = 23;
const ETH_P_ALL_BE = 0x0300;
const EAGAIN = 11;
const ENOBUFS = 105;
const MAX_FRAME = 65536;

const libc = koffi.load(null);
const c = {
  unshare: libc.func('unshare', 'int', ['int']),
  socket: libc.func('socket', 'int', ['int', 'int', 'int']),
  ioctl: libc.func('ioctl', 'int', ['int', 'ulong', 'void *']),
  bind: libc.func('bind', 'int', ['int', 'void *', 'uint']),
  setsockopt: libc.func('setsockopt', 'int', ['int', 'int', 'int', 'void *', 'uint']),
  send: libc.func('send', 'int64_t', ['int', 'void *', 'size_t', 'int']),
  recv: libc.func('recv', 'int64_t', ['int', 'void *', 'size_t', 'int']),
};

function check(result: number, what: string): number {
  if (result < 0) throw new Error(`${what}: errno ${koffi.errno()}`);
  return result;
}

/** Moves the calling thread into a network namespace of its own. @returns why that is not possible, or undefined */
export function enterOwnNetwork(): string | undefined {
  if (c.unshare(CLONE_NEWNET) === 0) return undefined;
  return `this process may not make a network namespace (errno ${koffi.errno()}): run as root`;
}

/** Two interfaces joined with each other, both up; of them nothing but frames of ours comes. */
export function addVeth(a: string, b: string, { queues = 1, mtu = 1500 } = {}): void {
  const count = ['numrxqueues', String(queues), 'numtxqueues', String(queues)];
  ip('link', 'add', a, 'mtu', String(mtu), ...count, 'type', 'veth', 'peer', 'name', b, 'mtu', String(mtu), ...count);
  for (const name of [a, b]) {
    // without an address of its own the kernel has nothing to say by IPv6
    ip('link', 'set', name, 'addrgenmode', 'none');
    ip('link', 'set', name, 'up');
  }
}

/** Has an interface in a network namespace send frames with their checksums done, as from a cable. */
export function completeChecksums(netns: string, name: string): void {
  inNetns(netns, () => {
    const fd = check(c.socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), 'socket');
    try {
      const value = Uint32Array.of(ETHTOOL_STXCSUM, 0);
      const request = new DataView(new ArrayBuffer(IFREQ.size));
      new Uint8Array(request.buffer).set(Buffer.from(name), IFREQ.off.ifr_name);
      request.setBigUint64(IFREQ.off.ifr_data, koffi.address(value), true);
      check(c.ioctl(fd, SIOCETHTOOL, request), 'ETHTOOL_STXCSUM');
    } finally {
      closeSync(fd);
    }
  });
}

/** Frames to and from an interface as they are. */
export class RawSocket {
  readonly fd: number;
  readonly #buffer = Buffer.alloc(MAX_FRAME);

  constructor(name: string) {
    const found = findInterface(name);
    if (found === undefined) throw new Error(`no interface ${name}`);
    this.fd = check(c.socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), 'socket');
    const big = Int32Array.of(2 ** 26);
    check(c.setsockopt(this.fd, SOL_SOCKET, SO_SNDBUFFORCE, big, 4), 'SO_SNDBUFFORCE');
    check(c.setsockopt(this.fd, SOL_SOCKET, SO_RCVBUFFORCE, big, 4), 'SO_RCVBUFFORCE');
    check(c.setsockopt(this.fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, Int32Array.of(1), 4), 'PACKET_IGNORE_OUTGOING');
    const address = Buffer.alloc(20);
    address.writeUInt16LE(AF_PACKET, 0);
    address.writeUInt16LE(ETH_P_ALL_BE, 2);
    address.writeInt32LE(found.index, 4);
    check(c.bind(this.fd, address, address.length), 'bind');
  }

  /** @returns false if there is no room just now */
  send(frame: Uint8Array): boolean {
    const n = Number(c.send(this.fd, frame, frame.length, 0));
    if (n < 0 && (koffi.errno() === EAGAIN || koffi.errno() === ENOBUFS)) return false;
    check(n, `send ${frame.length}`);
    return true;
  }

  /** The next frame, copied, or undefined if none is there. */
  receive(): Buffer | undefined {
    const n = Number(c.recv(this.fd, this.#buffer, this.#buffer.length, 0));
    if (n < 0 && koffi.errno() === EAGAIN) return undefined;
    return Buffer.from(this.#buffer.subarray(0, check(n, 'recv')));
  }

  close(): void {
    closeSync(this.fd);
  }
}
