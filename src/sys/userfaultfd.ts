/**
 * userfaultfd: a page that is missing in a registered range makes whoever touches it wait until a holder of the descriptor has
 * filled it.
 *
 * Whoever holds the descriptor has power over the address space it was made in: it may register any other range of it, and put
 * pages there.
 * @see userfaultfd(2), ioctl_userfaultfd(2)
 */
import { closeSync } from 'node:fs';
import { SysError } from '../errors.ts';
import {
  _UFFDIO_COPY,
  _UFFDIO_WAKE,
  UFFD_API,
  UFFD_FEATURE_MISSING_HUGETLBFS,
  UFFD_FEATURE_MISSING_SHMEM,
  UFFD_USER_MODE_ONLY,
  UFFDIO_API,
  UFFDIO_API_ARG,
  UFFDIO_RANGE_ARG,
  UFFDIO_REGISTER,
  UFFDIO_REGISTER_ARG,
  UFFDIO_REGISTER_MODE_MISSING,
  UFFDIO_UNREGISTER,
  UFFDIO_WAKE,
} from '../uapi/userfaultfd.ts';
import { check, EINVAL, errno, libc } from './libc.ts';

const SYS_USERFAULTFD = process.arch === 'x64' ? 323 : 282;
const O_CLOEXEC = 0o2000000;
const O_NONBLOCK = 0o4000;
const MADV_NOHUGEPAGE = 15;
const EPERM = 1;
const ENOSYS = 38;
const EOPNOTSUPP = 95;

/** What to do about an errno of userfaultfd(2). */
const ADVICE: Readonly<Record<number, string>> = {
  [ENOSYS]: '(postcopy needs a kernel with CONFIG_USERFAULTFD, and a seccomp profile that allows it)',
  [EPERM]:
    '(before Linux 5.11 it takes root or vm.unprivileged_userfaultfd=1; later ones refuse it only by a seccomp profile)',
};

const c = {
  syscall: libc.func('syscall', 'int64_t', ['int64_t', 'int']),
  ioctl: libc.func('ioctl', 'int', ['int', 'ulong', 'void *']),
  madvise: libc.func('madvise', 'int', ['uintptr_t', 'size_t', 'int']),
};

/** Memory of this process: both a multiple of the page size of what is mapped there. */
export interface AddressRange {
  readonly address: bigint;
  /** bytes */
  readonly size: number;
}

/**
 * Opens a userfaultfd for this process's memory and agrees with the kernel on the API. The caller owns it; it does not block, and
 * closes on exec.
 *
 * It is of the kind that needs no rights, from Linux 5.11 on: a thread waits only where it touches a page itself. A system call that
 * meets a missing page fails with EFAULT, and whoever else holds the descriptor cannot stop the kernel.
 * @throws SysError: ENOSYS, EPERM with what to do, EOPNOTSUPP where the kernel cannot do it for shared memory
 */
export function openUserfaultfd(): number {
  let fd = Number(c.syscall(SYS_USERFAULTFD, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY));
  if (fd < 0 && errno() === EINVAL) fd = Number(c.syscall(SYS_USERFAULTFD, O_CLOEXEC | O_NONBLOCK));
  if (fd < 0) throw new SysError('userfaultfd', errno(), ADVICE[errno()]);
  try {
    handshake(fd);
    return fd;
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

function handshake(fd: number): void {
  const arg = new BigUint64Array(UFFDIO_API_ARG.size / 8);
  arg[UFFDIO_API_ARG.off.api / 8] = BigInt(UFFD_API);
  check(c.ioctl(fd, UFFDIO_API, arg), 'UFFDIO_API');
  const needed = BigInt(UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MISSING_HUGETLBFS);
  if ((arg[UFFDIO_API_ARG.off.features / 8] & needed) !== needed)
    throw new SysError(
      'UFFDIO_API',
      EOPNOTSUPP,
      '(postcopy needs a kernel that handles faults of shared memory: Linux 4.11)',
    );
}

/** From now on a missing page in the range makes whoever touches it wait. */
export function registerMissing(fd: number, { address, size }: AddressRange): void {
  const { off } = UFFDIO_REGISTER_ARG;
  const arg = new BigUint64Array(UFFDIO_REGISTER_ARG.size / 8);
  arg[off.start / 8] = address;
  arg[off.len / 8] = BigInt(size);
  arg[off.mode / 8] = BigInt(UFFDIO_REGISTER_MODE_MISSING);
  check(c.ioctl(fd, UFFDIO_REGISTER, arg), 'UFFDIO_REGISTER', describe(address, size));
  const needed = (1n << BigInt(_UFFDIO_COPY)) | (1n << BigInt(_UFFDIO_WAKE));
  if ((arg[off.ioctls / 8] & needed) === needed) return;
  unregister(fd, { address, size });
  throw new SysError('UFFDIO_REGISTER', EOPNOTSUPP, describe(address, size));
}

/** The range is ordinary memory again: a missing page is a page of zeros. Wakes who waits in it. */
export function unregister(fd: number, { address, size }: AddressRange): void {
  check(c.ioctl(fd, UFFDIO_UNREGISTER, rangeArg(address, size)), 'UFFDIO_UNREGISTER', describe(address, size));
}

/** Has who waits in the range look again, whatever is mapped there now. */
export function wake(fd: number, { address, size }: AddressRange): void {
  check(c.ioctl(fd, UFFDIO_WAKE, rangeArg(address, size)), 'UFFDIO_WAKE', describe(address, size));
}

/** Keeps the kernel from joining the range's pages to a huge one, which would fill its missing ones with zeros. */
export function forbidHugePages({ address, size }: AddressRange): void {
  // EINVAL: a kernel without transparent huge pages
  if (c.madvise(address, size, MADV_NOHUGEPAGE) < 0 && errno() !== EINVAL)
    check(-1, 'madvise', describe(address, size));
}

function rangeArg(address: bigint, size: number): BigUint64Array {
  const arg = new BigUint64Array(UFFDIO_RANGE_ARG.size / 8);
  arg[UFFDIO_RANGE_ARG.off.start / 8] = address;
  arg[UFFDIO_RANGE_ARG.off.len / 8] = BigInt(size);
  return arg;
}

const describe = (address: bigint, size: number) => `0x${address.toString(16)} + ${size}`;
