/**
 * TAP interfaces: what a program writes the kernel receives as from a wire, and the other way round.
 * @see Documentation/networking/tuntap.rst
 */
import { closeSync, constants, openSync } from 'node:fs';
import { ARPHRD_ETHER, IFF_UP } from '../uapi/rtnetlink.ts';
import { IOVEC } from '../uapi/socket.ts';
import {
  IFF_MULTI_QUEUE,
  IFF_NO_PI,
  IFF_TAP,
  IFF_VNET_HDR,
  IFNAMSIZ,
  IFREQ,
  SIOCGIFFLAGS,
  SIOCSIFFLAGS,
  SIOCSIFHWADDR,
  TUN_F_CSUM,
  TUN_F_TSO_ECN,
  TUN_F_TSO4,
  TUN_F_TSO6,
  TUN_F_USO4,
  TUN_F_USO6,
  TUNSETIFF,
  TUNSETOFFLOAD,
  TUNSETPERSIST,
  TUNSETVNETHDRSZ,
} from '../uapi/tun.ts';
import { addressOf, check, errno, libc } from './libc.ts';

const AF_INET = 2;
const SOCK_DGRAM = 2;
const SOCK_CLOEXEC = 0o2000000;
const EPERM = 1;
const TWO_32 = 2 ** 32;

const c = {
  ioctl: libc.func('ioctl', 'int', ['int', 'ulong', 'void *']),
  /** the same call with a number in place of the address */
  ioctlValue: libc.func('ioctl', 'int', ['int', 'ulong', 'uintptr_t']),
  socket: libc.func('socket', 'int', ['int', 'int', 'int']),
  read: libc.func('read', 'int64_t', ['int', 'uintptr_t', 'size_t']),
  writev: libc.func('writev', 'int64_t', ['int', 'uintptr_t', 'int']),
};

function request(name: string): DataView {
  const bytes = Buffer.from(name);
  if (bytes.length >= IFNAMSIZ) throw new RangeError(`interface name longer than ${IFNAMSIZ - 1} bytes: ${name}`);
  const view = new DataView(new ArrayBuffer(IFREQ.size));
  new Uint8Array(view.buffer).set(bytes);
  return view;
}

/**
 * Opens a queue of the TAP interface `name` of the calling thread's network namespace, which is made unless it is there. Frames have
 * a virtio_net_hdr of `headerBytes` in front, and may be left undone as far as those say. The caller owns the descriptor, which does
 * not block. Throws SysError: EPERM without CAP_NET_ADMIN, EBUSY, EINVAL where `name` is something else; an Error with `code` ENOENT.
 * @param several queues the interface has
 */
export function openTap(name: string, headerBytes: number, several: boolean): number {
  const fd = openSync('/dev/net/tun', constants.O_RDWR | constants.O_NONBLOCK);
  try {
    const setIff = request(name);
    const flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (several ? IFF_MULTI_QUEUE : 0);
    setIff.setUint16(IFREQ.off.ifr_ifru, flags, true);
    check(c.ioctl(fd, TUNSETIFF, setIff), 'TUNSETIFF', name);
    check(c.ioctl(fd, TUNSETVNETHDRSZ, new Int32Array([headerBytes])), 'TUNSETVNETHDRSZ', name);
    const offloads = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
    // UDP since Linux 6.2
    if (c.ioctlValue(fd, TUNSETOFFLOAD, offloads | TUN_F_USO4 | TUN_F_USO6) < 0)
      check(c.ioctlValue(fd, TUNSETOFFLOAD, offloads), 'TUNSETOFFLOAD', name);
    return fd;
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

/** Whether the interface stays when its last queue is closed. */
export function setPersistent(fd: number, stays: boolean): void {
  check(c.ioctlValue(fd, TUNSETPERSIST, stays ? 1 : 0), 'TUNSETPERSIST');
}

function withSocket<T>(use: (fd: number) => T): T {
  const fd = check(c.socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), 'socket AF_INET');
  try {
    return use(fd);
  } finally {
    closeSync(fd);
  }
}

/** Gives an interface of the calling thread's network namespace its Ethernet address, 6 bytes. Throws SysError: EPERM. */
export function setAddress(name: string, mac: Uint8Array): void {
  withSocket((fd) => {
    const view = request(name);
    view.setUint16(IFREQ.off.ifr_ifru, ARPHRD_ETHER, true);
    new Uint8Array(view.buffer).set(mac, IFREQ.off.ifr_ifru + 2);
    check(c.ioctl(fd, SIOCSIFHWADDR, view), 'SIOCSIFHWADDR', name);
  });
}

/** Brings an interface of the calling thread's network namespace up. @returns false where that takes a right that we have not */
export function bringUp(name: string): boolean {
  return withSocket((fd) => {
    const view = request(name);
    check(c.ioctl(fd, SIOCGIFFLAGS, view), 'SIOCGIFFLAGS', name);
    const flags = view.getUint16(IFREQ.off.ifr_ifru, true);
    if ((flags & IFF_UP) !== 0) return true;
    view.setUint16(IFREQ.off.ifr_ifru, flags | IFF_UP, true);
    if (c.ioctl(fd, SIOCSIFFLAGS, view) >= 0) return true;
    if (errno() === EPERM) return false;
    check(-1, 'SIOCSIFFLAGS', name);
    return false;
  });
}

/** Reads one frame to an address. @returns its bytes, or −errno */
export function readFrame(fd: number, address: number, len: number): number {
  const n = Number(c.read(fd, address, len));
  return n < 0 ? -errno() : n;
}

/** The pieces of one frame, wherever they lie. */
export class FramePieces {
  readonly #words: Uint32Array;
  readonly #address: number;
  #count = 0;

  /** Has room for `pieces`. */
  constructor(pieces: number) {
    this.#words = new Uint32Array((pieces * IOVEC.size) / 4);
    this.#address = Number(addressOf(this.#words));
  }

  clear(): void {
    this.#count = 0;
  }

  /** The memory stays the caller's, who keeps it alive until `write`. */
  add(address: number, len: number): void {
    const at = (this.#count++ * IOVEC.size) / 4;
    this.#words[at] = address;
    this.#words[at + 1] = address / TWO_32;
    this.#words[at + 2] = len;
  }

  /** Writes the frame. @returns its bytes, or −errno */
  write(fd: number): number {
    const n = Number(c.writev(fd, this.#address, this.#count));
    return n < 0 ? -errno() : n;
  }
}
