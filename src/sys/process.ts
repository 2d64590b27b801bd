/**
 * Another process: a descriptor that stands for it, its file descriptors, and its memory. All of it takes the right to trace it.
 * @see pidfd_open(2), pidfd_getfd(2), process_vm_writev(2), ptrace(2) "Ptrace access mode checking"
 */
import { SysError } from '../errors.ts';
import { IOVEC } from '../uapi/socket.ts';
import { addressOf, check, libc } from './libc.ts';

/** The numbers are the same on every architecture since Linux 5.3. */
const SYS_PIDFD_OPEN = 434;
const SYS_PIDFD_GETFD = 438;

const EFAULT = 14;

const c = {
  syscall: libc.func('syscall', 'int64_t', ['int64_t', 'int64_t', 'int64_t', 'int64_t']),
  processVmWritev: libc.func('process_vm_writev', 'int64_t', ['int', 'void *', 'ulong', 'void *', 'ulong', 'ulong']),
};

/**
 * A close-on-exec descriptor of a process, which can be read once the process has ended. The caller owns it.
 * @param pid of the process, not of a thread other than its first. Throws SysError: ESRCH, EINVAL, ENOSYS before Linux 5.3
 */
export function openPidfd(pid: number): number {
  return check(Number(c.syscall(SYS_PIDFD_OPEN, pid, 0, 0)), 'pidfd_open', `of process ${pid}`);
}

/**
 * A close-on-exec duplicate of descriptor `fd` of the process behind `pidfd`. The caller owns it.
 * Throws SysError: EBADF, ESRCH, EPERM, ENOSYS before Linux 5.6.
 */
export function takeFd(pidfd: number, fd: number): number {
  return check(Number(c.syscall(SYS_PIDFD_GETFD, pidfd, fd, 0)), 'pidfd_getfd', `of descriptor ${fd}`);
}

/** Bytes in a row in the memory of a process. */
export interface MemoryRun {
  readonly address: number;
  len: number;
}

/** Runs that the kernel takes at once: IOV_MAX. */
export const MAX_FILL_RUNS = 1024;

/** Fills runs of a process's memory with `byte`; at most MAX_FILL_RUNS. Throws SysError: EFAULT where there is none to write to, ESRCH, EPERM. */
export function fillMemory(pid: number, runs: readonly MemoryRun[], byte: number): void {
  const total = runs.reduce((sum, { len }) => sum + len, 0);
  const bytes = new Uint8Array(total).fill(byte);
  const from = iovecs([{ base: addressOf(bytes), len: total }]);
  const to = iovecs(runs.map(({ address, len }) => ({ base: BigInt(address), len })));
  const what = `of process ${pid}`;
  const n = check(Number(c.processVmWritev(pid, from, 1, to, runs.length, 0)), 'process_vm_writev', what);
  if (n < total) throw new SysError('process_vm_writev', EFAULT, what);
}

function iovecs(pieces: readonly { base: bigint; len: number }[]): BigUint64Array {
  const words = new BigUint64Array((pieces.length * IOVEC.size) / 8);
  for (const [i, { base, len }] of pieces.entries()) {
    words[(i * IOVEC.size + IOVEC.off.iov_base) / 8] = base;
    words[(i * IOVEC.size + IOVEC.off.iov_len) / 8] = BigInt(len);
  }
  return words;
}
