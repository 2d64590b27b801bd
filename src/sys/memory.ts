/**
 * Shared memory: memfd, mmap, file sizes and seals.
 * Addresses are bigint, lengths and offsets are bytes as number (< 2⁵³).
 */
import { closeSync, ftruncateSync, readFileSync, statfsSync } from 'node:fs';
import { check, libc } from './libc.ts';

const PROT_READ_WRITE = 3;
const MAP_SHARED = 0x01;
const MAP_PRIVATE = 0x02;
const MAP_FIXED = 0x10;
const MAP_ANONYMOUS = 0x20;
const MAP_NORESERVE = 0x4000;
const MFD_CLOEXEC = 1;
const MFD_ALLOW_SEALING = 2;
const MFD_HUGETLB = 4;
const MFD_HUGE_2MB = 21 << 26;
const MFD_HUGE_1GB = 30 << 26;
const F_ADD_SEALS = 1033;
const F_GET_SEALS = 1034;
const F_SEAL_SHRINK = 2;
const SEEK_HOLE = 4;
const HUGETLBFS_MAGIC = 0x958458f6;

const c = {
  mmap: libc.func('mmap', 'uintptr_t', ['uintptr_t', 'size_t', 'int', 'int', 'int', 'int64_t']),
  memfdCreate: libc.func('memfd_create', 'int', ['str', 'uint']),
  fcntl: libc.func('fcntl', 'int', ['int', 'int', 'int']),
  lseek: libc.func('lseek', 'int64_t', ['int', 'int64_t', 'int']),
  fallocate: libc.func('fallocate', 'int', ['int', 'int', 'int64_t', 'int64_t']),
};

function mmap(address: bigint, len: number, flags: number, fd: number, fileOff: number): bigint {
  const at = BigInt(c.mmap(address, len, PROT_READ_WRITE, flags, fd, fileOff));
  if (at === 0xffff_ffff_ffff_ffffn) check(-1, 'mmap');
  return at;
}

/** Puts `len` bytes of `fd` from `fileOff` over the pages at `address`. The fd may be closed afterwards. */
export function mapShared(address: bigint, len: number, fd: number, fileOff: number): void {
  mmap(address, len, MAP_SHARED | MAP_FIXED, fd, fileOff);
}

/** Puts fresh zero pages over `len` bytes at `address`. */
export function mapZero(address: bigint, len: number): void {
  mmap(address, len, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
}

/** Reserves `len` bytes of zero pages anywhere, for as long as the process lives. */
export function reserve(len: number): bigint {
  return mmap(0n, len, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

/** A sealable, close-on-exec memory file of `len` zero bytes. The caller owns the fd. */
export function createMemfd(name: string, len: number): number {
  const fd = check(c.memfdCreate(name, MFD_CLOEXEC | MFD_ALLOW_SEALING), 'memfd_create');
  ftruncateSync(fd, len);
  return fd;
}

/** The page size a mapping of `fd` has: hugetlbfs files say theirs, everything else is 4096. */
export function pageSize(fd: number): number {
  const { type, bsize } = statfsSync(`/proc/self/fd/${fd}`);
  return type === HUGETLBFS_MAGIC ? bsize : 4096;
}

/** The seals of a memory file, as bits F_SEAL_…; undefined where a file cannot have any. */
export function fileSeals(fd: number): number | undefined {
  const seals = c.fcntl(fd, F_GET_SEALS, 0);
  return seals < 0 ? undefined : seals;
}

/** Types of file systems that a program or another machine serves: an access takes as long as they like. */
export const SERVED_FILE_SYSTEM = /^(fuse|nfs|cifs|smb|9p|ceph|afs|virtiofs|coda|lustre)/;

/**
 * True if the file lies in memory or on a disk of this machine, so that touching a mapping of it makes us wait for nobody. Asks no
 * file system, which alone might take for ever: memory files have seals, others are judged by their mount.
 */
export function isLocalFile(fd: number): boolean {
  return fileSeals(fd) !== undefined || isLocalMount(mountOf('self', fd), mountsOf('self'));
}

/** The same of a file that process `pid` has, and that may be of its mount namespace, by a handle (O_PATH) of it. */
export function isLocalHandle(handle: number, pid: number): boolean {
  return isLocalOf(mountOf('self', handle), pid);
}

/** The same of what is descriptor `fd` of process `pid` at the moment, without touching it. */
export function isLocalDescriptor(pid: number, fd: number): boolean {
  return isLocalOf(mountOf(pid, fd), pid);
}

function isLocalOf(mount: string | undefined, pid: number): boolean {
  return memoryMounts().has(mount) || isLocalMount(mount, [...mountsOf('self'), ...mountsOf(pid)]);
}

const mountsOf = (process: number | 'self') => readFileSync(`/proc/${process}/mountinfo`, 'utf8').split('\n');
const mountOf = (process: number | 'self', fd: number) =>
  /^mnt_id:\s*(\d+)$/m.exec(readFileSync(`/proc/${process}/fdinfo/${fd}`, 'utf8'))?.[1];

/** Mounts have numbers of their own all over the machine. */
function isLocalMount(mount: string | undefined, mounts: readonly string[]): boolean {
  const type = / - (\S+) /.exec(mounts.find((line) => line.startsWith(`${mount} `)) ?? '')?.[1];
  return type !== undefined && !SERVED_FILE_SYSTEM.test(type);
}

/** The kernel's own mounts of memory files, which no list of mounts names: each kind of memfd tells one. */
function memoryMounts(): Set<string | undefined> {
  const mounts = [0, MFD_HUGETLB, MFD_HUGETLB | MFD_HUGE_2MB, MFD_HUGETLB | MFD_HUGE_1GB].map((kind) => {
    const fd = c.memfdCreate('mount', MFD_CLOEXEC | kind);
    if (fd < 0) return undefined;
    try {
      return mountOf('self', fd);
    } finally {
      closeSync(fd);
    }
  });
  return new Set(mounts.filter((mount) => mount !== undefined));
}

/**
 * Forbids shrinking the file, so that no access to it can raise SIGBUS.
 * @returns false where the file takes no seals (a plain tmpfs or hugetlbfs file, a sealed-off memfd).
 */
export function sealAgainstShrinking(fd: number): boolean {
  const seals = fileSeals(fd);
  if (seals === undefined) return false;
  if ((seals & F_SEAL_SHRINK) !== 0) return true;
  return c.fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) === 0;
}

/**
 * True if `len` bytes of the file from `fileOff` on have a hole that its file system has no room, or no hugepage, to fill: touching it
 * through a mapping raises SIGBUS. Fills holes where there is room: one page of an ordinary file, all of a hugetlbfs file, which does
 * not tell where its holes are.
 */
export function hasHoleWithoutRoom(fd: number, fileOff: number, len: number): boolean {
  if (pageSize(fd) > 4096) return c.fallocate(fd, 0, fileOff, len) < 0;
  const hole = Number(c.lseek(fd, fileOff, SEEK_HOLE));
  return hole >= 0 && hole < fileOff + len && c.fallocate(fd, 0, hole, 1) < 0;
}
