/**
 * What kind of file a descriptor from a front end is: each request takes one kind, and no other may reach a device.
 */
import { fstatSync, readlinkSync } from 'node:fs';
import { isEventfd } from '../sys/eventfd.ts';
import { isLocalFile } from '../sys/memory.ts';
import { isUnixStream } from '../sys/unix-socket.ts';
import { protocolError } from './message.ts';
import type { AreaPayload } from './payloads.ts';

/** The one descriptor of `fds`, which stays in there. */
export function onlyFd(request: number, fds: readonly number[]): number {
  if (fds.length === 1) return fds[0];
  throw protocolError('PROTOCOL_FD_COUNT', request, `${fds.length} file descriptors, must be 1`);
}

function check(request: number, isRight: boolean, problem: string): void {
  if (!isRight) throw protocolError('PROTOCOL_FD_KIND', request, problem);
}

/**
 * Fails unless `fd` is memory: a memfd or a file of tmpfs, hugetlbfs or a local disk, not a socket, a pipe, a device, or a file that
 * somebody serves. `what` it should be, for the error.
 */
export function checkMemoryFd(request: number, fd: number, what: string): void {
  check(request, isLocalFile(fd) && fstatSync(fd).isFile(), `the file descriptor of ${what} is not a memory file`);
}

/** Fails unless `fd` is memory and reaches as far as `area` says. Both ends are below 2⁵³. */
export function checkArea(request: number, fd: number, area: AreaPayload, what: string): void {
  checkMemoryFd(request, fd, what);
  const need = area.fileOff + area.size;
  const has = fstatSync(fd).size;
  if (area.size > 0 && need <= has) return;
  const problem = area.size === 0 ? 'is empty' : `ends at byte ${need}, beyond the ${has} bytes of its file`;
  throw protocolError('PROTOCOL_MEMORY', request, `${what} ${problem}`);
}

export function checkEventfd(request: number, fd: number): void {
  check(request, isEventfd(fd), 'the file descriptor is not an eventfd');
}

/** A pipe, or a file on this machine: what a device's state goes through. */
export function checkStream(request: number, fd: number): void {
  // asks nobody who serves a file: see isLocalFile
  const isPipe = readlinkSync(`/proc/self/fd/${fd}`).startsWith('pipe:[');
  const isRight = isPipe || (isLocalFile(fd) && (fstatSync(fd).isFile() || fstatSync(fd).isFIFO()));
  check(request, isRight, 'the file descriptor is neither a pipe nor a file');
}

export function checkSocket(request: number, fd: number): void {
  check(request, isUnixStream(fd), 'the file descriptor is not a Unix stream socket');
}
