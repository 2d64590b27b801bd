/**
 * Unix stream sockets that carry file descriptors: what node:net cannot do.
 * Every fd made or received here is close-on-exec and belongs to the caller. Nothing waits, whatever flags a peer sets on a socket
 * that it has given us.
 * @see unix(7), cmsg(3)
 */
import { closeSync } from 'node:fs';
import koffi from 'koffi';
import { SysError } from '../errors.ts';
import { CMSGHDR, IOVEC, MSGHDR, SOCKADDR_UN, SUN_PATH_LEN } from '../uapi/socket.ts';
import { addressOf, check, EAGAIN, EINTR, errno, libc } from './libc.ts';

const AF_UNIX = 1;
const SOCK_STREAM = 1;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;
const SOL_SOCKET = 1;
const SCM_RIGHTS = 1;
const MSG_PEEK = 2;
const SO_TYPE = 3;
const SO_ACCEPTCONN = 30;
const SO_DOMAIN = 39;
const MSG_CTRUNC = 8;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const MSG_CMSG_CLOEXEC = 0x40000000;
/** The kernel never passes more fds at once (SCM_MAX_FD); room for all of them, so that none is lost unseen. */
const MAX_FDS = 253;
const EMFILE = 24;

const c = {
  socket: libc.func('socket', 'int', ['int', 'int', 'int']),
  bind: libc.func('bind', 'int', ['int', 'void *', 'uint']),
  listen: libc.func('listen', 'int', ['int', 'int']),
  accept4: libc.func('accept4', 'int', ['int', 'void *', 'void *', 'int']),
  connect: libc.func('connect', 'int', ['int', 'void *', 'uint']),
  recv: libc.func('recv', 'int64_t', ['int', 'void *', 'size_t', 'int']),
  socketpair: libc.func('socketpair', 'int', ['int', 'int', 'int', 'void *']),
  getsockopt: libc.func('getsockopt', 'int', ['int', 'int', 'int', 'void *', 'void *']),
  recvmsg: libc.func('recvmsg', 'int64_t', ['int', 'void *', 'int']),
  sendmsg: libc.func('sendmsg', 'int64_t', ['int', 'void *', 'int']),
};

function sockaddr(path: string): Uint8Array {
  const bytes = Buffer.from(path);
  if (bytes.length >= SUN_PATH_LEN) throw new RangeError(`socket path longer than ${SUN_PATH_LEN - 1} bytes: ${path}`);
  const addr = new Uint8Array(SOCKADDR_UN.size);
  new DataView(addr.buffer).setUint16(SOCKADDR_UN.off.sun_family, AF_UNIX, true);
  addr.set(bytes, SOCKADDR_UN.off.sun_path);
  return addr;
}

const unixSocket = () => check(c.socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), 'socket');

function withSocket(path: string, use: (fd: number, addr: Uint8Array) => void): number {
  const addr = sockaddr(path);
  const fd = unixSocket();
  try {
    use(fd, addr);
    return fd;
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

/**
 * A non-blocking socket bound to `path`, which must not exist. Nobody can connect before {@link startListening}: time to
 * set the file's mode and owner. Throws SysError (EADDRINUSE, …), RangeError for a long path.
 */
export function bindUnix(path: string): number {
  return withSocket(path, (fd, addr) => {
    check(c.bind(fd, addr, addr.length), 'bind', path);
  });
}

/** Lets peers connect to a bound socket; at most `backlog` wait to be accepted. */
export function startListening(fd: number, backlog: number): void {
  check(c.listen(fd, backlog), 'listen');
}

/** A non-blocking connection to the listener at `path`. Throws SysError (ECONNREFUSED, ENOENT, EAGAIN: its backlog is full). */
export function connectUnix(path: string): number {
  return withSocket(path, (fd, addr) => {
    check(c.connect(fd, addr, addr.length), 'connect', path);
  });
}

/** The next waiting connection, non-blocking, or undefined when there is none. Throws SysError (EMFILE, …). */
export function acceptUnix(listener: number): number | undefined {
  const fd = c.accept4(listener, null, null, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (fd >= 0) return fd;
  const e = errno();
  if (e === EAGAIN || e === EINTR || e === 103 /* ECONNABORTED */) return undefined;
  return check(fd, 'accept4');
}

/** Two non-blocking sockets, connected with each other. The caller owns both. */
export function unixPair(): [number, number] {
  const fds = new Int32Array(2);
  check(c.socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 'socketpair');
  return [fds[0], fds[1]];
}

/** A socket's option, or −1 where `fd` is none. */
function socketOption(fd: number, name: number): number {
  const value = new Int32Array(1);
  return c.getsockopt(fd, SOL_SOCKET, name, value, new Uint32Array([4])) < 0 ? -1 : value[0];
}

/** True if `fd` is a Unix stream socket. */
export function isUnixStream(fd: number): boolean {
  return socketOption(fd, SO_DOMAIN) === AF_UNIX && socketOption(fd, SO_TYPE) === SOCK_STREAM;
}

/** True if `fd` is a socket that listens. */
export function isListening(fd: number): boolean {
  return socketOption(fd, SO_ACCEPTCONN) === 1;
}

const { msg_iov, msg_iovlen, msg_control, msg_controllen, msg_flags } = MSGHDR.off;
const { cmsg_len, cmsg_level, cmsg_type } = CMSGHDR.off;

/** One msghdr with its iovec and control buffer, reused for every call of one direction. */
class MessageBuffers {
  readonly control = new DataView(new ArrayBuffer(CMSGHDR.size + 4 * MAX_FDS + 4));
  readonly header = new DataView(new ArrayBuffer(MSGHDR.size));
  readonly iovec = new DataView(new ArrayBuffer(IOVEC.size));

  /** Points the header at `data` and at `controlLen` bytes of control buffer. */
  prepare(data: Uint8Array, controlLen: number): void {
    this.iovec.setBigUint64(IOVEC.off.iov_base, addressOf(data), true);
    this.iovec.setBigUint64(IOVEC.off.iov_len, BigInt(data.length), true);
    this.header.setBigUint64(msg_iov, addressOf(this.iovec), true);
    this.header.setBigUint64(msg_iovlen, 1n, true);
    this.header.setBigUint64(msg_control, controlLen > 0 ? addressOf(this.control) : 0n, true);
    this.header.setBigUint64(msg_controllen, BigInt(controlLen), true);
    this.header.setInt32(msg_flags, 0, true);
  }
}

const receiving = new MessageBuffers();
const sending = new MessageBuffers();

/** How a receive ended: bytes read, 0 at end of file, AGAIN when nothing is there. */
export const AGAIN = -1;

/**
 * Reads into `data` without waiting, and appends any file descriptors that came along to `fds` (the caller closes them).
 * @returns bytes read, 0 when the peer has closed, AGAIN when there is nothing to read.
 * Throws SysError; EMFILE: descriptors were lost because this process may not open more.
 */
export function receive(fd: number, data: Uint8Array, fds: number[]): number {
  receiving.prepare(data, receiving.control.byteLength);
  const n = Number(c.recvmsg(fd, receiving.header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT));
  if (n < 0) {
    const e = errno();
    return e === EAGAIN || e === EINTR ? AGAIN : check(n, 'recvmsg');
  }
  takeFds(receiving, fds);
  if ((receiving.header.getInt32(msg_flags, true) & MSG_CTRUNC) !== 0) throw new SysError('recvmsg', EMFILE);
  return n;
}

const peeked = new Uint8Array(1);

/**
 * Looks whether something can be read, and leaves it where it is, with any file descriptors.
 * @returns 1 if so, 0 when the peer has closed, AGAIN when there is nothing. Throws SysError (ECONNRESET, …).
 */
export function peek(fd: number): number {
  const n = Number(c.recv(fd, peeked, 1, MSG_PEEK));
  if (n >= 0) return n;
  const e = errno();
  return e === EAGAIN || e === EINTR ? AGAIN : check(n, 'recv');
}

function takeFds({ header, control }: MessageBuffers, fds: number[]): void {
  const controlLen = Number(header.getBigUint64(msg_controllen, true));
  for (let at = 0; at + CMSGHDR.size <= controlLen; ) {
    const len = Number(control.getBigUint64(at + cmsg_len, true));
    if (len < CMSGHDR.size) break;
    if (
      control.getInt32(at + cmsg_level, true) === SOL_SOCKET &&
      control.getInt32(at + cmsg_type, true) === SCM_RIGHTS
    ) {
      const end = Math.min(at + len, controlLen);
      for (let off = at + CMSGHDR.size; off + 4 <= end; off += 4) fds.push(control.getInt32(off, true));
    }
    at += Math.ceil(len / 8) * 8;
  }
}

/**
 * Sends `data` with `fds` (which stay the caller's) without waiting.
 * @returns bytes taken by the kernel, AGAIN when the peer does not read. Throws SysError (EPIPE, …).
 */
export function send(fd: number, data: Uint8Array, fds: readonly number[] = []): number {
  const dataLen = CMSGHDR.size + 4 * fds.length;
  sending.prepare(data, fds.length > 0 ? Math.ceil(dataLen / 8) * 8 : 0);
  if (fds.length > 0) {
    sending.control.setBigUint64(cmsg_len, BigInt(dataLen), true);
    sending.control.setInt32(cmsg_level, SOL_SOCKET, true);
    sending.control.setInt32(cmsg_type, SCM_RIGHTS, true);
    for (let i = 0; i < fds.length; i++) sending.control.setInt32(CMSGHDR.size + 4 * i, fds[i], true);
  }
  const n = Number(c.sendmsg(fd, sending.header, MSG_NOSIGNAL | MSG_DONTWAIT));
  if (n >= 0) return n;
  const e = errno();
  return e === EAGAIN || e === EINTR ? AGAIN : check(n, 'sendmsg');
}

/** Calls `onReadable` on the event loop whenever `fd` can be read; keeps the process alive until closed. */
export class ReadWatch {
  #handle: ReturnType<typeof koffi.node.poll>;

  constructor(fd: number, onReadable: () => void) {
    this.#handle = koffi.node.poll(fd, { readable: true, disconnect: true }, onReadable);
  }

  /** Stops and frees the watch. Call before closing the fd. */
  close(): void {
    this.#handle.close();
  }

  /** Reading pauses: the kernel keeps what arrives. */
  pause(): void {
    this.#handle.stop();
  }

  /** Reading pauses, but the peer's end is told, once. */
  pauseUntilGone(onGone: () => void): void {
    this.#handle.start({ disconnect: true }, () => {
      this.#handle.stop();
      onGone();
    });
  }

  /** Watches again; with `writable` also for room to send. */
  resume(onReady: () => void, writable = false): void {
    this.#handle.start({ readable: true, writable, disconnect: true }, onReady);
  }
}
