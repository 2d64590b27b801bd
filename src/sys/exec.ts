/**
 * Replacing this process by another program, as if Node had never been here: what Node changes about a process at its start is put back.
 * @see execve(2), signal(7); Node's PlatformInit, libuv's uv_disable_stdio_inheritance
 */
import { fstatSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { constants } from 'node:os';
import { SysError } from '../errors.ts';
import { check, errno, libc } from './libc.ts';

const F_GETFD = 1;
const F_SETFD = 2;
const F_GETFL = 3;
const F_SETFL = 4;
const FD_CLOEXEC = 1;
const O_NONBLOCK = 0o4000;
const RLIMIT_NOFILE = 7;
const SIG_SETMASK = 2;
const SIGSET_BYTES = 128;
const SIGXFSZ = 25;
const STANDARD = [0, 1, 2];
/** Descriptors in an argument: `fd=3`, `"fds":"3:4"`, `vhostfd=5`, `fd:6`, `addr.str=7`. */
const NAMED_FDS = /(?:fds?|str)"?[=:]"?([\d:]+)/g;

const c = {
  execv: libc.func('execv', 'int', ['str', 'str *']),
  fcntl: libc.func('fcntl', 'int', ['int', 'int', 'int']),
  signal: libc.func('signal', 'uintptr_t', ['int', 'uintptr_t']),
  sigmask: libc.func('pthread_sigmask', 'int', ['int', 'void *', 'void *']),
  getrlimit: libc.func('getrlimit', 'int', ['int', 'void *']),
  setrlimit: libc.func('setrlimit', 'int', ['int', 'void *']),
};

function keepOpen(fd: number): void {
  check(c.fcntl(fd, F_SETFD, check(c.fcntl(fd, F_GETFD, 0), 'fcntl') & ~FD_CLOEXEC), 'fcntl');
}

/**
 * Runs the program `file` in this process, which keeps its id, its environment, the file descriptors it was started with, and those
 * that `args` name. Returns only by throwing SysError.
 * @param args without the program's name, which becomes `file`
 */
export function replaceProcess(file: string, args: readonly string[]): never {
  for (const fd of inheritedFds(args)) keepOpen(fd);
  for (const fd of STANDARD) {
    // Node makes a stream non-blocking once it is used, and nobody expects that; one that is closed has no flags
    const flags = c.fcntl(fd, F_GETFL, 0);
    if (flags >= 0) check(c.fcntl(fd, F_SETFL, flags & ~O_NONBLOCK), 'fcntl');
  }
  restoreFileLimit();
  for (const signal of [constants.signals.SIGPIPE, SIGXFSZ]) c.signal(signal, 0);
  c.sigmask(SIG_SETMASK, new Uint8Array(SIGSET_BYTES), null);
  c.execv(file, [file, ...args, null]);
  throw new SysError('execve', errno(), file);
}

/**
 * The descriptors that were there before Node. Node marks those below 16 as close-on-exec at its start, and opens all of its own so:
 * of those with the mark, Node's are of few kinds, and none is named on the command line.
 */
function inheritedFds(args: readonly string[]): number[] {
  const named = args.flatMap((word) => [...word.matchAll(NAMED_FDS)].flatMap(([, list]) => list.split(':')));
  const numbers = new Set(named.map(Number));
  const fds = readdirSync('/proc/self/fd').map(Number);
  const links = new Map(fds.map((fd) => [fd, linkOf(fd)]));
  const ends = (link: string) => [...links.values()].filter((other) => other === link).length;
  const isNodes = (link: string) =>
    /^(\/dev\/null|anon_inode:\[(eventpoll|eventfd|io_uring)\])$/.test(link) ||
    (link.startsWith('pipe:') && ends(link) > 1);
  return fds.filter((fd) => {
    const link = links.get(fd);
    // the folder that was read is closed by now
    if (link === undefined) return false;
    return STANDARD.includes(fd) || !isNodes(link) || numbers.has(fd);
  });
}

function linkOf(fd: number): string | undefined {
  try {
    fstatSync(fd);
    return readlinkSync(`/proc/self/fd/${fd}`);
  } catch (error) {
    if (['EBADF', 'ENOENT'].includes((error as NodeJS.ErrnoException).code ?? '')) return undefined;
    throw error;
  }
}

/** Node raises the soft limit of open files to the hard one. The parent still has what it was, where it has the same hard one. */
function restoreFileLimit(): void {
  const limit = new BigUint64Array(2);
  check(c.getrlimit(RLIMIT_NOFILE, limit), 'getrlimit');
  const [, soft, hard] = /^Max open files\s+(\d+)\s+(\d+)/m.exec(readParentLimits()) ?? [];
  if (soft === undefined || BigInt(hard) !== limit[1] || BigInt(soft) >= limit[0]) return;
  limit[0] = BigInt(soft);
  check(c.setrlimit(RLIMIT_NOFILE, limit), 'setrlimit');
}

function readParentLimits(): string {
  try {
    return readFileSync(`/proc/${process.ppid}/limits`, 'utf8');
  } catch {
    // the parent is gone or another user's: the limit stays as Node has it
    return '';
  }
}
