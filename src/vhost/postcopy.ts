/**
 * The receiving end of a postcopy migration: the guest runs here while most of its memory is still there, and a page arrives when it
 * is touched. The front end fills pages; we hand it a userfaultfd, so that it hears which page a thread of ours waits for.
 *
 * The order of things:
 * 1. POSTCOPY_ADVISE: `advise`, whose descriptor goes to the front end. Migration is still an ordinary one.
 * 2. POSTCOPY_LISTEN: from now on each SET_MEM_TABLE maps its regions, registers every mapping (`register`), and answers with their
 *    addresses. All that before anything in this process touches them: a page touched too early is a page of zeros for good, and the
 *    front end finds it there already. To touch is to read or write through a mapping, or fallocate(2) on the file; also what
 *    GuestMemory does about holes. And a page of the file is no sign of life: a file without any is what postcopy begins with.
 * 3. The front end has acknowledged the addresses: rings may start. A thread that touches a missing page waits, as long as the front
 *    end takes. What else it serves waits with it.
 * 4. POSTCOPY_END: `end`. All pages are there.
 *
 * When the front end dies in between, nobody fills the page, and our own descriptor keeps the thread waiting, which then answers to
 * nothing: no ring can be stopped, no mapping taken away. So `close` comes first when a device is destroyed, before any thread is asked
 * for anything, and on a thread that never touches guest memory. It turns missing pages into zeros: the guest is lost anyway.
 *
 * Trust: whoever holds the descriptor may register other memory of this process, its heap included, and put pages there. A front end
 * that offers postcopy must be one that may do as it likes with us: leave VHOST_USER_PROTOCOL_F_PAGEFAULT to an option.
 * @see vhost-user "Migration", POSTCOPY_ADVISE, POSTCOPY_LISTEN, POSTCOPY_END
 */
import { closeSync } from 'node:fs';
import {
  type AddressRange,
  duplicateFd,
  forbidHugePages,
  openUserfaultfd,
  registerMissing,
  unregister,
  wake,
} from '../sys/userfaultfd.ts';

export type { AddressRange };

/** One device's postcopy. Owns a userfaultfd from `advise` until `close`. */
export class Postcopy {
  #fd = -1;
  readonly #ranges: AddressRange[] = [];

  /** True from `advise` until `close`. */
  get active(): boolean {
    return this.#fd >= 0;
  }

  /**
   * Opens the userfaultfd, in place of one opened before.
   * @returns a descriptor of it for the front end: the caller's, to be closed when it has been passed on
   * @throws SysError with what to do where this machine does not let us
   */
  advise(): number {
    this.close();
    const fd = openUserfaultfd();
    try {
      const forFrontEnd = duplicateFd(fd);
      this.#fd = fd;
      return forFrontEnd;
    } catch (error) {
      closeSync(fd);
      throw error;
    }
  }

  /**
   * Makes missing pages of mappings wait for the front end. To be called when they have been mapped and not yet touched. All or none.
   * @param ranges each one mapping: address and length multiples of its page size
   * @throws SysError; RangeError before `advise`
   */
  register(ranges: readonly AddressRange[]): void {
    if (!this.active) throw new RangeError('postcopy has not been advised');
    const before = this.#ranges.length;
    try {
      for (const range of ranges) {
        forbidHugePages(range);
        registerMissing(this.#fd, range);
        this.#ranges.push(range);
      }
    } catch (error) {
      this.#free(this.#ranges.splice(before));
      throw error;
    }
  }

  /** Frees these ranges and wakes who waits in them; before they are unmapped. Ranges that were not registered are left alone. */
  unregister(ranges: readonly AddressRange[]): void {
    const known = (range: AddressRange) => ranges.some(({ address }) => address === range.address);
    const gone = this.#ranges.filter(known);
    this.#ranges.splice(0, this.#ranges.length, ...this.#ranges.filter((range) => !known(range)));
    this.#free(gone);
  }

  /** The migration is complete: as `close`. */
  end(): void {
    this.close();
  }

  /**
   * Frees all ranges, wakes all who wait, and closes our descriptor; the front end's is of no use to it any more. May be called
   * twice.
   * @throws SysError if a range could not be freed; the rest is done then all the same
   */
  close(): void {
    if (!this.active) return;
    const fd = this.#fd;
    try {
      this.#free(this.#ranges.splice(0));
    } finally {
      this.#fd = -1;
      closeSync(fd);
    }
  }

  /** Frees every range, and then throws what went wrong with the first that could not be. */
  #free(ranges: readonly AddressRange[]): void {
    const errors: unknown[] = [];
    const attempt = (what: (fd: number, range: AddressRange) => void, range: AddressRange) => {
      try {
        what(this.#fd, range);
      } catch (error) {
        errors.push(error);
      }
    };
    for (const range of ranges) {
      attempt(unregister, range);
      // Who waits in a range that something else has been mapped over since is not woken by the above.
      attempt(wake, range);
    }
    if (errors.length > 0) throw errors[0];
  }
}
