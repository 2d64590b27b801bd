/**
 * AF_XDP sockets: what is asked of the kernel to make one, and to have it send.
 * @see Linux Documentation/networking/af_xdp.rst
 */
import { SysError } from '../errors.ts';
import {
  AF_XDP,
  SOCKADDR_XDP,
  SOL_XDP,
  XDP_MMAP_OFFSETS,
  XDP_MMAP_OFFSETS_ARG,
  XDP_OPTIONS,
  XDP_OPTIONS_ZEROCOPY,
  XDP_STATISTICS,
  XDP_STATISTICS_ARG,
  XDP_UMEM_REG,
  XDP_UMEM_REG_ARG,
  XDP_UMEM_UNALIGNED_CHUNK_FLAG,
} from '../uapi/xdp.ts';
import { check, errno, libc } from './libc.ts';

const SOCK_RAW = 3;
const SOCK_CLOEXEC = 0o2000000;
const SOL_SOCKET = 1;
const SO_SNDBUF = 7;
const SO_SNDBUFFORCE = 32;
const MSG_DONTWAIT = 0x40;
const EOPNOTSUPP = 95;
/** What the kernel copies before the frames leave counts against the socket's buffer: enough for a full ring. */
const SEND_BUFFER_BYTES = 2 ** 24;

const c = {
  socket: libc.func('socket', 'int', ['int', 'int', 'int']),
  bind: libc.func('bind', 'int', ['int', 'void *', 'uint']),
  setsockopt: libc.func('setsockopt', 'int', ['int', 'int', 'int', 'void *', 'uint']),
  getsockopt: libc.func('getsockopt', 'int', ['int', 'int', 'int', 'void *', 'void *']),
  sendto: libc.func('sendto', 'int64_t', ['int', 'void *', 'size_t', 'int', 'void *', 'uint']),
  recvfrom: libc.func('recvfrom', 'int64_t', ['int', 'void *', 'size_t', 'int', 'void *', 'void *']),
};

/** A socket, close-on-exec, which the caller owns. Throws SysError: EPERM without CAP_NET_RAW; EAFNOSUPPORT: the kernel has none. */
export function openXdpSocket(): number {
  const fd = check(c.socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0), 'socket', 'AF_XDP');
  const bytes = Int32Array.of(SEND_BUFFER_BYTES);
  // without CAP_NET_ADMIN as much as anybody may have
  if (c.setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, bytes, 4) < 0) c.setsockopt(fd, SOL_SOCKET, SO_SNDBUF, bytes, 4);
  return fd;
}

/**
 * Makes `len` bytes at `address` the socket's UMEM, in chunks of `chunk` bytes. Their pages stay in memory until the socket is closed.
 * Throws SysError: ENOBUFS where the process may not keep so much in memory.
 */
export function registerUmem(fd: number, address: bigint, len: number, chunk: number): void {
  const arg = umemArg(address, len, chunk, 0);
  check(c.setsockopt(fd, SOL_XDP, XDP_UMEM_REG, arg, arg.byteLength), 'setsockopt', `XDP_UMEM_REG of ${len} bytes`);
}

/**
 * The same where chunks may begin at any address, on a thread of its own: nobody waits while the pages are pinned. Rejects with SysError:
 * ENOBUFS; ENOMEM, EFAULT: some of it is not there, or may not be written.
 */
export function registerUnalignedUmem(fd: number, address: bigint, len: number, chunk: number): Promise<void> {
  const arg = umemArg(address, len, chunk, XDP_UMEM_UNALIGNED_CHUNK_FLAG);
  return new Promise((resolve, reject) => {
    c.setsockopt.async(fd, SOL_XDP, XDP_UMEM_REG, arg, arg.byteLength, (error: unknown, status: number) => {
      if (error) return reject(error as Error);
      if (status === 0) return resolve();
      // once more, to hear why: errno is each thread's own
      if (c.setsockopt(fd, SOL_XDP, XDP_UMEM_REG, arg, arg.byteLength) === 0) return resolve();
      reject(new SysError('setsockopt', errno(), `XDP_UMEM_REG of ${len} bytes`));
    });
  });
}

function umemArg(address: bigint, len: number, chunk: number, flags: number): DataView {
  const { off } = XDP_UMEM_REG_ARG;
  const arg = new DataView(new ArrayBuffer(XDP_UMEM_REG_ARG.size));
  arg.setBigUint64(off.addr, address, true);
  arg.setBigUint64(off.len, BigInt(len), true);
  arg.setUint32(off.chunk_size, chunk, true);
  arg.setUint32(off.flags, flags, true);
  return arg;
}

/** Makes one of the socket's rings. @param option XDP_RX_RING and the like @param size elements, a power of two */
export function makeXdpRing(fd: number, option: number, size: number): void {
  check(c.setsockopt(fd, SOL_XDP, option, Uint32Array.of(size), 4), 'setsockopt', 'SOL_XDP ring');
}

/** Where the parts of a ring lie in its mapping, bytes. */
export interface RingParts {
  readonly producer: number;
  readonly consumer: number;
  readonly desc: number;
  readonly flags: number;
}

/** The parts of each of a socket's rings. Throws SysError: EOPNOTSUPP before Linux 5.4. */
export function ringParts(fd: number): Readonly<Record<keyof (typeof XDP_MMAP_OFFSETS_ARG)['off'], RingParts>> {
  const arg = new BigUint64Array(XDP_MMAP_OFFSETS_ARG.size / 8);
  const len = Uint32Array.of(arg.byteLength);
  check(c.getsockopt(fd, SOL_XDP, XDP_MMAP_OFFSETS, arg, len), 'getsockopt', 'XDP_MMAP_OFFSETS');
  // before Linux 5.4 the rings had no flags, and the answer was shorter
  if (len[0] !== arg.byteLength) throw new SysError('getsockopt', EOPNOTSUPP, 'XDP_MMAP_OFFSETS');
  const of = (off: number) => {
    const [producer, consumer, desc, flags] = arg.subarray(off / 8, off / 8 + 4);
    return { producer: Number(producer), consumer: Number(consumer), desc: Number(desc), flags: Number(flags) };
  };
  const { rx, tx, fr, cr } = XDP_MMAP_OFFSETS_ARG.off;
  return { rx: of(rx), tx: of(tx), fr: of(fr), cr: of(cr) };
}

/**
 * Binds the socket to a queue of an interface. @param sharedFd a bound socket whose UMEM and rings of free frames this one uses, with
 * XDP_SHARED_UMEM. Throws SysError: EBUSY: another socket has the queue, or had it a moment ago; EINVAL: there is no such queue, or
 * its chunks are too small for the interface's MTU; EOPNOTSUPP: no zero copy here.
 */
export function bindXdpSocket(fd: number, ifindex: number, queue: number, flags: number, sharedFd = 0): void {
  const { off } = SOCKADDR_XDP;
  const address = new DataView(new ArrayBuffer(SOCKADDR_XDP.size));
  address.setUint16(off.sxdp_family, AF_XDP, true);
  address.setUint16(off.sxdp_flags, flags, true);
  address.setUint32(off.sxdp_ifindex, ifindex, true);
  address.setUint32(off.sxdp_queue_id, queue, true);
  address.setUint32(off.sxdp_shared_umem_fd, sharedFd, true);
  check(c.bind(fd, address, address.byteLength), 'bind', `AF_XDP queue ${queue}`);
}

/** True if the bound socket's frames are where the driver puts them, without a copy. */
export function isZeroCopy(fd: number): boolean {
  const flags = new Uint32Array(1);
  check(c.getsockopt(fd, SOL_XDP, XDP_OPTIONS, flags, Uint32Array.of(4)), 'getsockopt', 'XDP_OPTIONS');
  return (flags[0] & XDP_OPTIONS_ZEROCOPY) !== 0;
}

/** Has the kernel look at the TX ring, of which it sends up to 32 frames in copy mode. @returns 0, or the errno */
export function kickTransmit(fd: number): number {
  return c.sendto(fd, null, 0, MSG_DONTWAIT, null, 0) < 0 ? errno() : 0;
}

/** Has the kernel look at the fill ring. */
export function kickReceive(fd: number): void {
  c.recvfrom(fd, null, 0, MSG_DONTWAIT, null, null);
}

/** What a socket has lost; the kernel counts from its opening on. */
export class XdpStatistics {
  readonly #values = new Float64Array(XDP_STATISTICS_ARG.size / 8);
  readonly #bytes = new DataView(new ArrayBuffer(XDP_STATISTICS_ARG.size));
  readonly #len = new Uint32Array(1);

  /** Asks the kernel. Throws SysError. */
  read(fd: number): void {
    this.#len[0] = this.#bytes.byteLength;
    check(c.getsockopt(fd, SOL_XDP, XDP_STATISTICS, this.#bytes, this.#len), 'getsockopt', 'XDP_STATISTICS');
    for (let i = 0; i < this.#values.length; i++)
      this.#values[i] = this.#bytes.getUint32(8 * i, true) + 2 ** 32 * this.#bytes.getUint32(8 * i + 4, true);
  }

  /** Frames for which there was no free chunk, or that were longer than one, or came while nobody listened. */
  get dropped(): number {
    return this.#values[XDP_STATISTICS_ARG.off.rx_dropped / 8];
  }

  /** Frames that found the RX ring full. */
  get ringFull(): number {
    return this.#values[XDP_STATISTICS_ARG.off.rx_ring_full / 8];
  }

  /** Descriptors of ours that made no sense: there are none. */
  get invalid(): number {
    return (
      this.#values[XDP_STATISTICS_ARG.off.rx_invalid_descs / 8] +
      this.#values[XDP_STATISTICS_ARG.off.tx_invalid_descs / 8]
    );
  }
}
