/**
 * A guest's memory as its process has it: by address. Finds the files that lie there, so that they can be mapped here, too.
 *
 * A file is had by a duplicate of the process's own descriptor where it keeps one, and so with no more rights than it has. Memory of
 * which it has no descriptor is opened through /proc/PID/map_files, with the rights of this process: so only files that the process
 * has mapped to write to. Files that somebody serves are not opened at all: that might take for ever.
 * @see proc_pid_maps(5), proc_pid_map_files(5)
 */
import { closeSync, constants, fstatSync, openSync, readdirSync, readFileSync, readSync } from 'node:fs';
import { ProtocolError } from '../errors.ts';
import type { MemoryRegion } from '../mem/guest-memory.ts';
import { duplicateFd } from '../sys/descriptor.ts';
import { isLocalDescriptor, isLocalFile, isLocalHandle } from '../sys/memory.ts';
import { type FileRange, fileRanges, isStillThere, type MemoryPiece, parseMaps } from './memory-map.ts';
import { closeLater, explainRights, type Opener } from './opener.ts';

/** A region as SET_MEM_TABLE has it. */
export interface OpenerRegion {
  /** guest physical address */
  readonly guestAddr: number;
  /** bytes */
  readonly size: number;
  /** in the opener's memory */
  readonly frontendAddr: number;
}

/** Bytes of /proc/PID/maps that are read: more than the kernel's default limit of 65530 pieces takes. */
const MAX_MAPS_BYTES = 16 * 2 ** 20;
/** Descriptors of a process that are looked at. */
const MAX_DESCRIPTORS = 65536;
/** A private region of so many bytes is no memory of the guest's own, but a device's, in which no ring and no packet lies. */
const MAX_LEFT_OUT_BYTES = 16 * 2 ** 20;
const O_PATH = 0o10000000;
const O_ACCMODE = 3;
const REQUEST = 'SET_MEM_TABLE';
const SHARE = 'in QEMU: -object memory-backend-memfd,id=mem,size=SIZE,share=on -machine memory-backend=mem';

const hex = (n: number) => `0x${n.toString(16)}`;
const idOf = ({ dev, ino }: MemoryPiece) => `${dev} ${ino}`;

/**
 * The same regions with the files that they lie in; one that lies in several files comes out as several.
 * @param max regions that may come out
 * @param onProblem hears of what is left out: small private regions beside shared ones, such as the memory of a video card
 * @returns regions whose fds are the caller's. Throws ProtocolError: PROTOCOL_MEMORY, PRIVATE_MEMORY, OPENER_RIGHTS; nothing is open then
 */
export function openMemory(
  opener: Opener,
  regions: readonly OpenerRegion[],
  max: number,
  onProblem: (problem: string) => void,
): MemoryRegion[] {
  const pieces = readMaps(opener.pid);
  const found = regions.map((region, i) => findParts(pieces, region, i));
  const shared = found.some(({ refusal }) => refusal === undefined);
  const parts = found.flatMap(({ parts: some, refusal }, i) => {
    if (refusal === undefined) return some;
    if (!shared || regions[i].size > MAX_LEFT_OUT_BYTES) throw refusal;
    onProblem(`${refusal.message}: left out`);
    return [];
  });
  if (parts.length > max)
    throw new ProtocolError(
      'PROTOCOL_MEMORY',
      REQUEST,
      `guest memory lies in ${parts.length} pieces of files, must be at most ${max}; in DPDK: --single-file-segments`,
    );
  const files = new OpenerFiles(opener);
  try {
    files.open(parts.map(({ range }) => range.piece));
    return withDuplicates(files, parts);
  } finally {
    files.close();
  }
}

interface Part {
  readonly guestAddr: number;
  readonly range: FileRange;
}

function withDuplicates(files: OpenerFiles, parts: readonly Part[]): MemoryRegion[] {
  const made: MemoryRegion[] = [];
  try {
    for (const { guestAddr, range } of parts) {
      const { start, size, fileOff, piece } = range;
      made.push({ guestAddr, size, frontendAddr: start, fileOff, fd: duplicateFd(files.fdOf(piece)) });
    }
    return made;
  } catch (error) {
    for (const { fd } of made) closeSync(fd);
    throw error;
  }
}

function readMaps(pid: number): MemoryPiece[] {
  try {
    const fd = openSync(`/proc/${pid}/maps`, 'r');
    try {
      return parseMaps(readBounded(fd));
    } finally {
      closeSync(fd);
    }
  } catch (error) {
    throw explainRights(error, REQUEST, pid);
  }
}

function readBounded(fd: number): string {
  const chunks: Buffer[] = [];
  for (let total = 0; ; ) {
    const chunk = Buffer.allocUnsafe(65536);
    const n = readSync(fd, chunk);
    if (n === 0) return Buffer.concat(chunks).toString('latin1');
    chunks.push(chunk.subarray(0, n));
    total += n;
    if (total > MAX_MAPS_BYTES)
      throw new ProtocolError('PROTOCOL_MEMORY', REQUEST, 'the opener has too many mappings to look through');
  }
}

interface Found {
  readonly parts: readonly Part[];
  /** why the region cannot be shared, if so */
  readonly refusal: ProtocolError | undefined;
}

function findParts(
  pieces: readonly MemoryPiece[],
  { guestAddr, size, frontendAddr }: OpenerRegion,
  index: number,
): Found {
  const ranges = fileRanges(pieces, frontendAddr, size);
  const mapped = ranges.reduce((sum, range) => sum + range.size, 0);
  const where = `guest memory region ${index}, at ${hex(frontendAddr)} in the opener,`;
  if (mapped !== size)
    throw new ProtocolError(
      'PROTOCOL_MEMORY',
      REQUEST,
      `${where} has ${size} bytes, of which ${mapped} are mapped there`,
    );
  const unshared = ranges.find(({ piece }) => !piece.shared || piece.ino === 0)?.piece;
  if (unshared !== undefined) {
    const what = unshared.ino === 0 ? 'anonymous memory' : `a private mapping of ${unshared.name}`;
    const problem = `${where} is ${what}, and must be shared; ${SHARE}`;
    return { parts: [], refusal: new ProtocolError('PRIVATE_MEMORY', REQUEST, problem) };
  }
  const readOnly = ranges.find(({ piece }) => !piece.writable)?.piece;
  if (readOnly !== undefined)
    throw new ProtocolError('PROTOCOL_MEMORY', REQUEST, `${where} is read-only memory of ${readOnly.name}`);
  const parts = ranges.map((range) => ({ guestAddr: guestAddr + range.start - frontendAddr, range }));
  return { parts, refusal: undefined };
}

/** `MAJOR:MINOR INODE` of an open file, as /proc/PID/maps has them. */
function idOfFile(fd: number): string {
  const { dev, ino } = fstatSync(fd, { bigint: true });
  const major = ((dev >> 8n) & 0xfffn) | ((dev >> 32n) & ~0xfffn);
  const minor = (dev & 0xffn) | ((dev >> 12n) & ~0xffn);
  const digits = (n: bigint) => n.toString(16).padStart(2, '0');
  return `${digits(major)}:${digits(minor)} ${ino}`;
}

/** Files of a process, each open once. */
class OpenerFiles {
  readonly #opener: Opener;
  readonly #fds = new Map<string, number>();

  constructor(opener: Opener) {
    this.#opener = opener;
  }

  /** Opens the files of `pieces`. What is open when it fails is closed by `close`. */
  open(pieces: readonly MemoryPiece[]): void {
    const wanted = new Map(pieces.map((piece) => [idOf(piece), piece]));
    this.#takeDescriptors(wanted);
    const others = [...wanted].filter(([id]) => !this.#fds.has(id)).map(([, piece]) => piece);
    if (others.length > 0) this.#openMapped(others);
  }

  fdOf(piece: MemoryPiece): number {
    return this.#fds.get(idOf(piece)) as number;
  }

  close(): void {
    for (const fd of this.#fds.values()) closeSync(fd);
    this.#fds.clear();
  }

  #takeDescriptors(wanted: ReadonlyMap<string, MemoryPiece>): void {
    const names = new Set([...wanted.values()].map(({ name }) => name));
    for (const number of this.#descriptors()) {
      if (this.#fds.size === wanted.size) return;
      const fd = this.#takeIf(number, (name) => names.has(name));
      if (fd === undefined) continue;
      const id = idOfFile(fd);
      if (!wanted.has(id) || this.#fds.has(id) || !isWritable(fd)) closeSync(fd);
      else this.#fds.set(id, fd);
    }
  }

  #descriptors(): number[] {
    try {
      return readdirSync(`/proc/${this.#opener.pid}/fd`).slice(0, MAX_DESCRIPTORS).map(Number);
    } catch (error) {
      throw explainRights(error, REQUEST, this.#opener.pid);
    }
  }

  /** A duplicate of a descriptor of that name, of a local file; nothing where it has just been closed or changed. */
  #takeIf(number: number, isWanted: (name: string) => boolean): number | undefined {
    const { pid } = this.#opener;
    try {
      if (!isWanted(this.#opener.nameOf(REQUEST, number)) || !isLocalDescriptor(pid, number)) return undefined;
      const fd = this.#opener.takeFd(REQUEST, number);
      if (isLocalFile(fd)) return fd;
      closeLater(fd);
      return undefined;
    } catch (error) {
      const { code } = error as { code?: string };
      if (code === 'EBADF' || code === 'ENOENT') return undefined;
      throw error;
    }
  }

  /** Files that the process has no descriptor of. */
  #openMapped(pieces: readonly MemoryPiece[]): void {
    const { pid } = this.#opener;
    const handles: number[] = [];
    try {
      for (const piece of pieces) handles.push(openHandle(pid, piece));
      // what the handles hold cannot change any more: now see that it is still what the process has mapped to write to
      const now = readMaps(pid);
      for (const [i, piece] of pieces.entries()) {
        if (idOfFile(handles[i]) !== idOf(piece) || !isStillThere(now, piece))
          throw new ProtocolError(
            'PROTOCOL_MEMORY',
            REQUEST,
            `${piece.name} at ${hex(piece.start)} is not there any more`,
          );
        this.#fds.set(idOf(piece), openSync(`/proc/self/fd/${handles[i]}`, 'r+'));
      }
    } finally {
      for (const handle of handles) closeSync(handle);
    }
  }
}

/** A handle of a mapped file, which can neither be read nor written. */
function openHandle(pid: number, piece: MemoryPiece): number {
  const range = `${piece.start.toString(16)}-${piece.end.toString(16)}`;
  let handle: number;
  try {
    handle = openSync(`/proc/${pid}/map_files/${range}`, O_PATH);
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (code !== 'EPERM' && code !== 'EACCES') throw error;
    const problem = `${piece.name} at ${hex(piece.start)} has no descriptor in the opener and cannot be opened (${message})`;
    throw new ProtocolError(
      'OPENER_RIGHTS',
      REQUEST,
      `${problem}: run the switch with CAP_CHECKPOINT_RESTORE, or ${SHARE}`,
    );
  }
  if (isLocalHandle(handle, pid)) return handle;
  closeSync(handle);
  throw new ProtocolError(
    'PROTOCOL_MEMORY',
    REQUEST,
    `${piece.name} at ${hex(piece.start)} is no memory file; ${SHARE}`,
  );
}

/** The process can write to it by its descriptor, and so may we. */
function isWritable(fd: number): boolean {
  const flags = /^flags:\s*([0-7]+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))?.[1] ?? '0';
  return (Number.parseInt(flags, 8) & O_ACCMODE) === constants.O_RDWR;
}
