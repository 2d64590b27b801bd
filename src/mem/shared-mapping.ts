/**
 * A piece of a file that is no guest memory, mapped into a window of its own: what a front end shares beside its guest's memory.
 */
import { closeSync, fstatSync } from 'node:fs';
import { ProtocolError } from '../errors.ts';
import { hasHoleWithoutRoom, isLocalFile, pageSize, sealAgainstShrinking } from '../sys/memory.ts';
import type { Place } from './mapped-region.ts';
import { firstOffset, mapInto, unmapFrom, WINDOW_USABLE_BYTES, type WindowHandle, type WindowPool } from './window.ts';

/** Records in it are read and written eight bytes at a time. */
const ALIGN = 8;

/** What to map. Who gets it owns the fd. */
export interface SharedFile {
  readonly fd: number;
  /** bytes */
  readonly size: number;
  /** where it begins in the file, bytes */
  readonly fileOff: number;
}

/** What is wrong with the file, or undefined. Maps nothing. */
function problemOf({ fd, size, fileOff }: SharedFile): string | undefined {
  if (!isLocalFile(fd) || !fstatSync(fd).isFile()) return 'is not a memory file';
  if (size <= 0 || fileOff < 0 || fileOff % ALIGN !== 0)
    return `has ${size} bytes from offset ${fileOff} on: there must be some, from a multiple of ${ALIGN} on`;
  const { size: fileSize } = fstatSync(fd);
  if (size > fileSize || fileOff > fileSize - size)
    return `is too short: ${size} bytes from offset ${fileOff} on, its file has ${fileSize}`;
  return undefined;
}

export class SharedMapping implements Place {
  readonly handle: WindowHandle;
  /** id of the window */
  readonly window: number;
  /** where the first byte lies in it */
  readonly off: number;
  /** bytes */
  readonly size: number;
  readonly #pool: WindowPool;
  readonly #file: SharedFile;
  readonly #sealed: boolean;
  /** what is mapped: whole pages */
  readonly #windowOff: number;
  readonly #len: number;

  /**
   * Maps the file and takes its fd over, also on failure.
   * @param what names it in errors, e.g. `the dirty log`
   * @throws ProtocolError about `request`, with the fd closed and nothing mapped
   */
  constructor(pool: WindowPool, file: SharedFile, what: string, request: string) {
    this.#pool = pool;
    this.#file = file;
    this.size = file.size;
    let window: WindowHandle | undefined;
    try {
      const problem = problemOf(file);
      if (problem !== undefined) throw new ProtocolError('BAD_SHARED_AREA', request, `${what} ${problem}`);
      const page = pageSize(file.fd);
      const skip = file.fileOff % page;
      this.#len = Math.ceil((skip + file.size) / page) * page;
      window = pool.acquire();
      this.#windowOff = firstOffset(window, page);
      if (this.#len > WINDOW_USABLE_BYTES - this.#windowOff)
        throw new ProtocolError('BAD_SHARED_AREA', request, `${what} has ${file.size} bytes, which is too much`);
      map(window, this.#windowOff, this.#len, file, what, request);
      this.#sealed = sealAgainstShrinking(file.fd);
      this.handle = window;
      this.window = window.id;
      this.off = this.#windowOff + skip;
    } catch (error) {
      if (window !== undefined) pool.release(window);
      closeSync(file.fd);
      throw error;
    }
  }

  /** Unmaps it, closes the fd and gives the window back. Nobody may use it any more. */
  release(): void {
    unmapFrom(this.handle, this.#windowOff, this.#len);
    closeSync(this.#file.fd);
    this.#pool.release(this.handle);
  }

  /** As GuestMemory's: puts zero pages over it if its file has been cut off. @returns true if it has */
  coverTruncated(): boolean {
    const { fd, fileOff, size } = this.#file;
    return this.#coverIf(!this.#sealed && fstatSync(fd).size < fileOff + size);
  }

  /** As GuestMemory's: puts zero pages over it if its file has holes that cannot be filled. @returns true if it has */
  coverHoles(): boolean {
    const { fd, fileOff, size } = this.#file;
    return this.#coverIf(hasHoleWithoutRoom(fd, fileOff, size));
  }

  #coverIf(lost: boolean): boolean {
    if (lost) unmapFrom(this.handle, this.#windowOff, this.#len);
    return lost;
  }
}

function map(
  window: WindowHandle,
  at: number,
  len: number,
  { fd, fileOff }: SharedFile,
  what: string,
  request: string,
) {
  try {
    mapInto(window, at, len, fd, fileOff - (fileOff % pageSize(fd)));
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw new ProtocolError('BAD_SHARED_AREA', request, `${what} cannot be mapped: ${why}`);
  }
}
