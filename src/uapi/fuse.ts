/**
 * The FUSE protocol as far as a character device in user space (CUSE) speaks it. Pure data.
 * All numbers are in the machine's byte order, which is little endian on every machine this package runs on.
 * @see linux/fuse.h
 */
import { layout } from './layout.ts';

/** The version of the protocol: both sides use the smaller of their two minor numbers. */
export const FUSE_KERNEL_VERSION = 7;

/** In front of every request. What the last 4 bytes mean depends on the minor version, and nothing to a character device. */
export const FUSE_IN_HEADER = layout('fuse_in_header', {
  len: 'u32',
  opcode: 'u32',
  unique: 'u64',
  nodeid: 'u64',
  uid: 'u32',
  gid: 'u32',
  pid: 'u32',
  total_extlen: 'u16',
  padding: 'u16',
});
/** In front of every answer. `error` is 0 or a negative errno. */
export const FUSE_OUT_HEADER = layout('fuse_out_header', { len: 'u32', error: 's32', unique: 'u64' });

export const CUSE_INIT_IN = layout('cuse_init_in', { major: 'u32', minor: 'u32', unused: 'u32', flags: 'u32' });
/** What follows it describes the device: strings `NAME=VALUE`, each with its final NUL. */
export const CUSE_INIT_OUT = layout('cuse_init_out', {
  major: 'u32',
  minor: 'u32',
  unused: 'u32',
  flags: 'u32',
  max_read: 'u32',
  max_write: 'u32',
  dev_major: 'u32',
  dev_minor: 'u32',
  spare: ['u32', 10],
});
/** `open_flags` has been `unused` before minor version 32. */
export const FUSE_OPEN_IN = layout('fuse_open_in', { flags: 'u32', open_flags: 'u32' });
export const FUSE_OPEN_OUT = layout('fuse_open_out', { fh: 'u64', open_flags: 'u32', padding: 'u32' });
export const FUSE_RELEASE_IN = layout('fuse_release_in', {
  fh: 'u64',
  flags: 'u32',
  release_flags: 'u32',
  lock_owner: 'u64',
});
export const FUSE_READ_IN = layout('fuse_read_in', {
  fh: 'u64',
  offset: 'u64',
  size: 'u32',
  read_flags: 'u32',
  lock_owner: 'u64',
  flags: 'u32',
  padding: 'u32',
});
/** `size` bytes follow it. */
export const FUSE_WRITE_IN = layout('fuse_write_in', {
  fh: 'u64',
  offset: 'u64',
  size: 'u32',
  write_flags: 'u32',
  lock_owner: 'u64',
  flags: 'u32',
  padding: 'u32',
});
export const FUSE_WRITE_OUT = layout('fuse_write_out', { size: 'u32', padding: 'u32' });
/** `in_size` bytes that the caller has in its memory follow it. */
export const FUSE_IOCTL_IN = layout('fuse_ioctl_in', {
  fh: 'u64',
  flags: 'u32',
  cmd: 'u32',
  arg: 'u64',
  in_size: 'u32',
  out_size: 'u32',
});
/** What follows it goes to the caller's memory; with FUSE_IOCTL_RETRY it is `in_iovs + out_iovs` pieces of that memory to ask for. */
export const FUSE_IOCTL_OUT = layout('fuse_ioctl_out', {
  result: 's32',
  flags: 'u32',
  in_iovs: 'u32',
  out_iovs: 'u32',
});
/** A piece of the caller's memory. Before minor version 16 it was a `struct iovec` of the caller's. */
export const FUSE_IOCTL_IOVEC = layout('fuse_ioctl_iovec', { base: 'u64', len: 'u64' });
/** Before minor version 21 `events` was padding. */
export const FUSE_POLL_IN = layout('fuse_poll_in', { fh: 'u64', kh: 'u64', flags: 'u32', events: 'u32' });
export const FUSE_POLL_OUT = layout('fuse_poll_out', { revents: 'u32', padding: 'u32' });
export const FUSE_NOTIFY_POLL_WAKEUP_OUT = layout('fuse_notify_poll_wakeup_out', { kh: 'u64' });
export const FUSE_INTERRUPT_IN = layout('fuse_interrupt_in', { unique: 'u64' });

export const FUSE_OPEN = 14;
export const FUSE_READ = 15;
export const FUSE_WRITE = 16;
export const FUSE_RELEASE = 18;
export const FUSE_INTERRUPT = 36;
export const FUSE_DESTROY = 38;
export const FUSE_IOCTL = 39;
export const FUSE_POLL = 40;
export const CUSE_INIT = 4096;

/** Code of a message without a request: whoever polls the handle may ask again. */
export const FUSE_NOTIFY_POLL = 1;

/** Ioctls may name any piece of the caller's memory, by an answer with FUSE_IOCTL_RETRY. */
export const CUSE_UNRESTRICTED_IOCTL = 1 << 0;
/** The caller is a 32-bit process. */
export const FUSE_IOCTL_COMPAT = 1 << 0;
export const FUSE_IOCTL_UNRESTRICTED = 1 << 1;
export const FUSE_IOCTL_RETRY = 1 << 2;
/** The poller sleeps, and wants to be notified. */
export const FUSE_POLL_SCHEDULE_NOTIFY = 1 << 0;
/** The file has no position. */
export const FOPEN_NONSEEKABLE = 1 << 2;

/** The least that a read of requests must have room for. */
export const FUSE_MIN_READ_BUFFER = 8192;
