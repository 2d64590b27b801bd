/**
 * /dev/cuse: requests for a character device of one's own are read from it, and answers written to it. Nothing here waits.
 * @see linux/fuse.h; fuse(4)
 */
import { constants, openSync } from 'node:fs';
import { check, EAGAIN, EINTR, errno, libc } from './libc.ts';

const ENOENT = 2;

const c = {
  read: libc.func('read', 'int64_t', ['int', 'void *', 'size_t']),
  write: libc.func('write', 'int64_t', ['int', 'void *', 'size_t']),
};

/** A new, close-on-exec connection to the kernel's CUSE, owned by the caller. Throws an Error with `code` ENOENT, EACCES, ENXIO, … */
export function openCuse(path: string): number {
  return openSync(path, constants.O_RDWR | constants.O_NONBLOCK);
}

/** Nothing is there to be read. */
export const NO_REQUEST = -1;

/**
 * Reads one whole request.
 * @param buffer at least FUSE_MIN_READ_BUFFER bytes
 * @returns its bytes, 0 at the end of a connection, or NO_REQUEST. Throws SysError: ENODEV when the kernel has given the device up
 */
export function readRequest(fd: number, buffer: Uint8Array): number {
  const n = Number(c.read(fd, buffer, buffer.length));
  if (n >= 0) return n;
  const e = errno();
  // ENOENT: who made the request has gone before it was read
  return e === EAGAIN || e === EINTR || e === ENOENT ? NO_REQUEST : check(n, 'read', '/dev/cuse');
}

/** Writes one whole answer. @returns false where nobody waits for it any more. Throws SysError: ENODEV, EINVAL, … */
export function writeAnswer(fd: number, answer: Uint8Array): boolean {
  const n = Number(c.write(fd, answer, answer.length));
  if (n >= 0) return true;
  return errno() === ENOENT ? false : check(n, 'write', '/dev/cuse') > 0;
}
