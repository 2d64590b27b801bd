/**
 * /proc/PID/maps: which files lie where in a process's memory.
 * @see proc_pid_maps(5)
 */

/** A piece of a process's memory. */
export interface MemoryPiece {
  readonly start: number;
  /** the first address behind it */
  readonly end: number;
  /** the process may write to it */
  readonly writable: boolean;
  /** what the process writes is seen by all who map the file */
  readonly shared: boolean;
  /** where `start` lies in the file, bytes */
  readonly fileOff: number;
  /** major and minor number of the file system, in hexadecimal digits as they stand there */
  readonly dev: string;
  /** inode number; 0 for memory of no file */
  readonly ino: number;
  /** the file's name as its process has it, or what the kernel calls the memory */
  readonly name: string;
}

const LINE = /^([0-9a-f]+)-([0-9a-f]+) .(.).(.) ([0-9a-f]+) ([0-9a-f]+:[0-9a-f]+) (\d+) *(.*)$/;

/** All pieces, by address. Lines that are none are passed over. */
export function parseMaps(text: string): MemoryPiece[] {
  return text
    .split('\n')
    .map(pieceOf)
    .filter((piece) => piece !== undefined);
}

function pieceOf(line: string): MemoryPiece | undefined {
  const found = LINE.exec(line);
  if (found === null) return undefined;
  const [, start, end, write, mode, off, dev, ino, name] = found;
  return {
    start: Number.parseInt(start, 16),
    end: Number.parseInt(end, 16),
    writable: write === 'w',
    shared: mode === 's',
    fileOff: Number.parseInt(off, 16),
    dev,
    ino: Number(ino),
    name,
  };
}

/** The first of `pieces`, which are in order, that does not end before `address`. */
function firstBehind(pieces: readonly MemoryPiece[], address: number): number {
  let low = 0;
  let high = pieces.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (pieces[middle].end <= address) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** A range of a process's memory that is one range of one file. */
export interface FileRange {
  /** its first piece */
  readonly piece: MemoryPiece;
  readonly start: number;
  /** bytes */
  readonly size: number;
  /** where it begins in the file, bytes */
  readonly fileOff: number;
}

/** The file ranges that `size` bytes at `start` are made of, by address; pieces that go on in the same file are one. */
export function fileRanges(pieces: readonly MemoryPiece[], start: number, size: number): FileRange[] {
  const ranges: FileRange[] = [];
  const end = start + size;
  for (let i = firstBehind(pieces, start); i < pieces.length && pieces[i].start < end; i++) {
    const piece = pieces[i];
    const from = Math.max(piece.start, start);
    const next = {
      piece,
      start: from,
      size: Math.min(piece.end, end) - from,
      fileOff: piece.fileOff + from - piece.start,
    };
    const last = ranges.at(-1);
    if (last !== undefined && goesOn(last, next)) ranges[ranges.length - 1] = { ...last, size: last.size + next.size };
    else ranges.push(next);
  }
  return ranges;
}

const isSameFile = (a: MemoryPiece, b: MemoryPiece) => a.dev === b.dev && a.ino === b.ino;

function goesOn(a: FileRange, b: FileRange): boolean {
  const sameKind = a.piece.shared === b.piece.shared && a.piece.writable === b.piece.writable;
  const adjacent = a.start + a.size === b.start && a.fileOff + a.size === b.fileOff;
  return adjacent && sameKind && isSameFile(a.piece, b.piece);
}

/** True if `pieces` still have the file that was in `piece`, at the same address, shared and to be written. */
export function isStillThere(pieces: readonly MemoryPiece[], piece: MemoryPiece): boolean {
  const now = pieces[firstBehind(pieces, piece.start)];
  return now !== undefined && now.start === piece.start && now.shared && now.writable && isSameFile(now, piece);
}
