/**
 * userfaultfd: page faults of a process, handled by whoever holds the descriptor.
 * @see linux/userfaultfd.h, userfaultfd(2), ioctl_userfaultfd(2)
 */
import { layout } from './layout.ts';

/** The version of the API, in `uffdio_api.api`. */
export const UFFD_API = 0xaa;
export const UFFD_USER_MODE_ONLY = 1;

export const UFFDIO_API_ARG = layout('uffdio_api', { api: 'u64', features: 'u64', ioctls: 'u64' });
export const UFFDIO_RANGE_ARG = layout('uffdio_range', { start: 'u64', len: 'u64' });
/** `start` and `len` are its range's */
export const UFFDIO_REGISTER_ARG = layout('uffdio_register', { start: 'u64', len: 'u64', mode: 'u64', ioctls: 'u64' });
/** `copy` is signed */
export const UFFDIO_COPY_ARG = layout('uffdio_copy', { dst: 'u64', src: 'u64', len: 'u64', mode: 'u64', copy: 'u64' });
/** What read(2) gives of a page fault; `flags` and `address` are those of `arg.pagefault` */
export const UFFD_MSG = layout('uffd_msg', {
  event: 'u8',
  reserved1: 'u8',
  reserved2: 'u16',
  reserved3: 'u32',
  flags: 'u64',
  address: 'u64',
  ptid: 'u64',
});

export const UFFD_FEATURE_MISSING_HUGETLBFS = 1 << 4;
export const UFFD_FEATURE_MISSING_SHMEM = 1 << 5;
export const UFFDIO_REGISTER_MODE_MISSING = 1;
export const UFFD_EVENT_PAGEFAULT = 0x12;

/** Bits of `uffdio_register.ioctls` */
export const _UFFDIO_WAKE = 2;
export const _UFFDIO_COPY = 3;

export const UFFDIO_API = 0xc018aa3f;
export const UFFDIO_REGISTER = 0xc020aa00;
export const UFFDIO_UNREGISTER = 0x8010aa01;
export const UFFDIO_WAKE = 0x8010aa02;
export const UFFDIO_COPY = 0xc028aa03;
