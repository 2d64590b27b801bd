/**
 * eventfd and epoll, for lcores that sleep until a guest kicks.
 * @see eventfd(2), epoll(7)
 */
import { closeSync, readFileSync, readlinkSync } from 'node:fs';
import { addressOf, check, EINTR, errno, libc } from './libc.ts';

const EFD_CLOEXEC = 0o2000000;
const EFD_NONBLOCK = 0o4000;
const EPOLL_CLOEXEC = 0o2000000;
const EPOLL_CTL_ADD = 1;
const EPOLL_CTL_DEL = 2;
const EPOLLIN = 1;
const EPOLLET = 0x80000000;
const F_GETFL = 3;
const F_SETFL = 4;
const O_NONBLOCK = 0o4000;
const RWF_NOWAIT = 8;
const MAX_EVENTS = 16;

const c = {
  eventfd: libc.func('eventfd', 'int', ['uint', 'int']),
  write: libc.func('write', 'int64_t', ['int', 'void *', 'size_t']),
  read: libc.func('read', 'int64_t', ['int', 'void *', 'size_t']),
  preadv2: libc.func('preadv2', 'int64_t', ['int', 'void *', 'int', 'int64_t', 'int']),
  fcntl: libc.func('fcntl', 'int', ['int', 'int', 'int']),
  epollCreate: libc.func('epoll_create1', 'int', ['int']),
  epollCtl: libc.func('epoll_ctl', 'int', ['int', 'int', 'int', 'void *']),
  epollWait: libc.func('epoll_wait', 'int', ['int', 'void *', 'int', 'int']),
};

const one = new BigUint64Array([1n]);
const counter = new BigUint64Array(1);

/** In place of an eventfd that a front end does not pass: the ring is polled, or the event is not wanted. */
export const NO_FD = -1;

/** A non-blocking, close-on-exec eventfd. The caller owns it. */
export function createEventfd(): number {
  return check(c.eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), 'eventfd');
}

/** `n` of them, or none and the error. */
export function createEventfds(n: number): number[] {
  const fds: number[] = [];
  try {
    while (fds.length < n) fds.push(createEventfd());
    return fds;
  } catch (error) {
    for (const fd of fds) closeSync(fd);
    throw error;
  }
}

/** True if `fd` is an eventfd: the only kind of descriptor a kick or a call may be. */
export function isEventfd(fd: number): boolean {
  return isEventfdName(readlinkSync(`/proc/self/fd/${fd}`));
}

/** True if that is what /proc calls an eventfd. */
export const isEventfdName = (name: string): boolean => name === 'anon_inode:[eventfd]';

/** What the eventfd has been signalled and nobody has taken yet; looking takes nothing. */
export function eventfdCount(fd: number): number {
  const info = readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8');
  return Number.parseInt(/^eventfd-count:\s*([0-9a-f]+)$/m.exec(info)?.[1] ?? '0', 16);
}

/** True if adding one to the eventfd would have to wait: its count is the largest there is, 2⁶⁴ − 2, as near as a number comes to it. */
export function eventfdFull(fd: number): boolean {
  return eventfdCount(fd) >= 2 ** 64;
}

/** Makes calls on `fd` return instead of waiting. The setting is shared by all who hold the same open file. */
export function setNonblocking(fd: number): void {
  const flags = check(c.fcntl(fd, F_GETFL, 0), 'fcntl');
  check(c.fcntl(fd, F_SETFL, flags | O_NONBLOCK), 'fcntl');
}

/** Adds one to the eventfd. @returns false if its counter is full and nobody reads it. */
export function signal(fd: number): boolean {
  return Number(c.write(fd, one, 8)) === 8;
}

/** Takes the eventfd's count and resets it; 0 if there was nothing. */
export function drain(fd: number): number {
  return Number(c.read(fd, counter, 8)) === 8 ? Number(counter[0]) : 0;
}

/** Takes the eventfd's count without waiting, whatever the other holders of the same open file do to its flags. */
export function drainNow(fd: number): void {
  const iovec = new BigUint64Array([addressOf(counter), BigInt(counter.byteLength)]);
  c.preadv2(fd, iovec, 1, -1, RWF_NOWAIT);
}

/**
 * Signals eventfds that a guest has given us, where another thread can see which one is being written: a guest may fill its
 * eventfd and make it blocking behind our back, and the write then waits until somebody drains it (see LcoreThread).
 */
export class Caller {
  readonly #mark: Int32Array;
  readonly #at: number;

  /** `mark[at]` holds the eventfd being written, or −1. */
  constructor(mark: Int32Array, at: number) {
    this.#mark = mark;
    this.#at = at;
    mark[at] = -1;
  }

  /** As `signal`. */
  call(fd: number): boolean {
    this.#mark[this.#at] = fd;
    const taken = signal(fd);
    this.#mark[this.#at] = -1;
    return taken;
  }
}

/** A set of eventfds to sleep on. Edge-triggered: a kick is never read, so no peer can make us wait in read(2). */
export class Epoll {
  readonly #fd: number;
  /** room for what epoll_wait tells, which nobody reads: struct epoll_event is 12 bytes on x86-64 and 16 elsewhere */
  readonly #events = new Uint8Array(MAX_EVENTS * 16);

  constructor() {
    this.#fd = check(c.epollCreate(EPOLL_CLOEXEC), 'epoll_create1');
  }

  /** The set itself: it can be read when one of its eventfds has been signalled since the last `wait`. It stays this object's. */
  get fd(): number {
    return this.#fd;
  }

  /** Watches `fd`, which stays the caller's and must be removed before it is closed. */
  add(fd: number): void {
    const event = new Uint32Array([EPOLLIN | EPOLLET, fd, 0, 0]);
    check(c.epollCtl(this.#fd, EPOLL_CTL_ADD, fd, event), 'epoll_ctl');
  }

  remove(fd: number): void {
    check(c.epollCtl(this.#fd, EPOLL_CTL_DEL, fd, null), 'epoll_ctl');
  }

  /** Sleeps until a watched fd is signalled, at most `timeoutMs`. @returns true if one was. */
  wait(timeoutMs: number): boolean {
    const n = c.epollWait(this.#fd, this.#events, MAX_EVENTS, timeoutMs);
    if (n < 0 && errno() !== EINTR) check(n, 'epoll_wait');
    return n > 0;
  }

  close(): void {
    closeSync(this.#fd);
  }
}
