/**
 * Another process: a descriptor that stands for it, its file descriptors, and its memory. All of it takes the right to trace it.
 * @see pidfd_open(2), pidfd_getfd(2), process_vm_writev(2), ptrace(2) "Ptrace access mode checking"
 */
import { IOVEC } from '../uapi/socket.ts';
import { addressOf, check, libc } from './libc.ts';

/** The numbers are the same on every architecture since Linux 5.3. */
const SYS_PIDFD_OPEN = 434;
const SYS_PIDFD_GETFD = 438;

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

const iovec = (base: bigint, len: number) => {
  const words = new BigUint64Array(IOVEC.size / 8);
  words[IOVEC.off.iov_base / 8] = base;
  words[IOVEC.off.iov_len / 8] = BigInt(len);
  return words;
};

/** Writes `bytes` to `address` in the memory of a process. Throws SysError: EFAULT, ESRCH, EPERM. */
export function writeMemory(pid: number, address: number, bytes: Uint8Array): void {
  const from = iovec(addressOf(bytes), bytes.length);
  const to = iovec(BigInt(address), bytes.length);
  for (let done = 0; done < bytes.length; ) {
    const n = check(Number(c.processVmWritev(pid, from, 1, to, 1, 0)), 'process_vm_writev', `of process ${pid}`);
    done += n;
    from.set(iovec(addressOf(bytes) + BigInt(done), bytes.length - done));
    to.set(iovec(BigInt(address + done), bytes.length - done));
  }
}
