/**
 * A guest's memory as the UMEM of an AF_XDP socket, on the main thread: all its files mapped once more, one behind the other, with memory
 * of our own before and behind. So it has no holes, may be of any size, and goes on a chunk beyond every byte of the guest's.
 *
 * The kernel keeps the pages, whatever becomes of the mapping: the guest's memory may be unmapped elsewhere at any time.
 */
import { SwitchError, SysError } from '../errors.ts';
import type { MappedFile } from '../mem/guest-memory.ts';
import { mapShared, populate, reserve, unmap } from '../sys/memory.ts';
import { registerUnalignedUmem } from '../sys/xdp-socket.ts';
import type { UmemPiece } from './lane-spec.ts';

/** Bytes of a chunk: the kernel takes up to a page; the larger, the less it keeps of each. */
export const UMEM_CHUNK = 4096;
/** Ours before the guest's memory: a chunk that begins in front of the guest's first byte. */
export const UMEM_PAD = 4096;
/** Pages are provided in steps of so many bytes. */
const STEP_BYTES = 2 ** 26;

const alignUp = (n: bigint, to: bigint) => ((n + to - 1n) / to) * to;

export class GuestUmem {
  readonly #address: bigint;
  readonly #reserved: { readonly address: bigint; readonly len: number };
  readonly bytes: number;
  /** where the guest's memory lies, and where our own behind it begins */
  readonly pieces: readonly UmemPiece[];
  readonly ownOff: number;

  /**
   * Maps it. @param files of the guest @param own a memory file of UMEM_PAD and `ownBytes` bytes, whole pages; the fd stays the caller's.
   * Throws SysError.
   */
  constructor(files: readonly MappedFile[], own: number, ownBytes: number) {
    // larger pages first: then each file begins where its own pages may
    const ordered = files.toSorted((a, b) => b.page - a.page);
    const guestBytes = ordered.reduce((sum, { len }) => sum + len, 0);
    const page = ordered[0]?.page ?? UMEM_PAD;
    const len = UMEM_PAD + page + guestBytes + ownBytes;
    const address = reserve(len);
    this.#reserved = { address, len };
    const first = alignUp(address + BigInt(UMEM_PAD), BigInt(page));
    this.#address = first - BigInt(UMEM_PAD);
    this.bytes = UMEM_PAD + guestBytes + ownBytes;
    this.ownOff = UMEM_PAD + guestBytes;
    const pieces: UmemPiece[] = [];
    try {
      mapShared(this.#address, UMEM_PAD, own, 0);
      let at = UMEM_PAD;
      for (const file of ordered) {
        mapShared(this.#address + BigInt(at), file.len, file.fd, file.from);
        for (const { window, windowOff, len: bytes, fileOff } of file.mappings)
          pieces.push({ window: window.id, off: windowOff, len: bytes, umemOff: at + fileOff - file.from });
        at += file.len;
      }
      mapShared(this.#address + BigInt(at), ownBytes, own, UMEM_PAD);
    } catch (error) {
      this.close();
      throw error;
    }
    this.pieces = pieces;
  }

  /**
   * Has all pages provided and pinned, on another thread; between steps `wanted` says whether to go on.
   * @returns false if it was not wanted any more. Rejects with SwitchError (LANE_…).
   */
  async register(fd: number, wanted: () => boolean): Promise<boolean> {
    for (let at = 0; at < this.bytes; at += STEP_BYTES) {
      if (!wanted()) return false;
      await this.#provide(at, Math.min(STEP_BYTES, this.bytes - at));
    }
    if (!wanted()) return false;
    try {
      await registerUnalignedUmem(fd, this.#address, this.bytes, UMEM_CHUNK);
    } catch (error) {
      throw pinRefusal(error, this.bytes);
    }
    return true;
  }

  async #provide(at: number, len: number): Promise<void> {
    try {
      await populate(this.#address + BigInt(at), len);
    } catch (error) {
      if (!(error instanceof SysError)) throw error;
      const problem = `there is no memory behind ${len} bytes of it: give the host more, or the guest less`;
      throw new SwitchError('LANE_NO_MEMORY', `the guest’s memory cannot be provided: ${problem} (${error.message})`);
    }
  }

  /** Unmaps it; what a socket has of it stays with the socket. */
  close(): void {
    unmap(this.#reserved.address, this.#reserved.len);
  }
}

function pinRefusal(error: unknown, bytes: number): unknown {
  if (!(error instanceof SysError)) return error;
  const mib = Math.ceil(bytes / 2 ** 20);
  if (error.code === 'ENOBUFS' || error.code === 'EPERM')
    return new SwitchError(
      'LANE_MEMLOCK',
      `the guest’s memory may not be kept in place: raise the limit of locked memory (ulimit -l, LimitMEMLOCK=) by ${mib} MiB, or ` +
        `run with CAP_IPC_LOCK (${error.message})`,
    );
  if (error.code === 'ENOMEM' || error.code === 'EFAULT')
    return new SwitchError(
      'LANE_NO_MEMORY',
      `the guest’s memory cannot be kept in place: some of it is no memory, but a disk file, or cannot be written; start QEMU with ` +
        `-object memory-backend-memfd,share=on (${error.message})`,
    );
  return error;
}
