/** The front end's part of postcopy: hears of page faults through the userfaultfd that it was given, and fills pages. */
import { closeSync, readSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import koffi from 'koffi';
import {
  UFFD_EVENT_PAGEFAULT,
  UFFD_MSG,
  UFFDIO_COPY,
  UFFDIO_COPY_ARG,
  UFFDIO_RANGE_ARG,
  UFFDIO_WAKE,
} from '../../src/uapi/userfaultfd.ts';

const ioctl = koffi.load(null).func('ioctl', 'int', ['int', 'ulong', 'void *']);

function call(fd: number, request: number, arg: BigUint64Array, name: string): void {
  if (ioctl(fd, request, arg) < 0) throw new Error(`${name}: errno ${koffi.errno()}`);
}

export class PageFiller {
  readonly #fd: number;

  /** Owns `fd`. */
  constructor(fd: number) {
    this.#fd = fd;
  }

  /** @returns the address of the next page fault: that of its page */
  async fault(timeoutMs = 5000): Promise<bigint> {
    const deadline = Date.now() + timeoutMs;
    for (;;) {
      const address = this.poll();
      if (address !== undefined) return address;
      if (Date.now() > deadline) throw new Error(`no page fault within ${timeoutMs} ms`);
      await sleep(1);
    }
  }

  /** As `fault`, or undefined if there is none. */
  poll(): bigint | undefined {
    const message = Buffer.alloc(UFFD_MSG.size);
    try {
      readSync(this.#fd, message);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'EAGAIN') return undefined;
      throw error;
    }
    if (message[UFFD_MSG.off.event] !== UFFD_EVENT_PAGEFAULT) throw new Error(`event ${message[0]}`);
    return message.readBigUInt64LE(UFFD_MSG.off.address);
  }

  /** Puts `page` at an address, and wakes who waits for it. */
  copy(address: bigint, page: Uint8Array): void {
    const arg = new BigUint64Array(UFFDIO_COPY_ARG.size / 8);
    arg[UFFDIO_COPY_ARG.off.dst / 8] = address;
    arg[UFFDIO_COPY_ARG.off.src / 8] = koffi.address(page);
    arg[UFFDIO_COPY_ARG.off.len / 8] = BigInt(page.length);
    call(this.#fd, UFFDIO_COPY, arg, 'UFFDIO_COPY');
  }

  /** Wakes who waits for the page, which has been filled in the file. */
  wake(address: bigint, len = 4096): void {
    const arg = new BigUint64Array(UFFDIO_RANGE_ARG.size / 8);
    arg[UFFDIO_RANGE_ARG.off.start / 8] = address;
    arg[UFFDIO_RANGE_ARG.off.len / 8] = BigInt(len);
    call(this.#fd, UFFDIO_WAKE, arg, 'UFFDIO_WAKE');
  }

  close(): void {
    closeSync(this.#fd);
  }
}
