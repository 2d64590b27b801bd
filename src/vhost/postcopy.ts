/**
 * The receiving end of a postcopy migration: the guest runs here while most of its memory is still there, and a page arrives when it
 * is touched. The front end fills pages; we hand it a userfaultfd, so that it hears which page a thread of ours waits for.
 *
 * The order of things:
 * 1. POSTCOPY_ADVISE makes one of these, and the front end gets a descriptor of it. Migration is still an ordinary one.
 * 2. POSTCOPY_LISTEN: from now on each SET_MEM_TABLE maps its regions, registers every mapping (`register`), and answers with their
 *    addresses. All that before anything in this process touches them: a page touched too early is a page of zeros for good, and the
 *    front end finds it there already. To touch is to read or write through a mapping, or fallocate(2) on the file; also what
 *    GuestMemory.coverHoles does. And a page of the file is no sign of life: a file without any is what postcopy begins with.
 * 3. The front end has acknowledged the addresses: rings may start. A thread that touches a missing page waits, as long as the front
 *    end takes. What else it serves waits with it.
 * 4. POSTCOPY_END: `close`. All pages are there.
 * Memory is unregistered before it is unmapped: its addresses may be another guest's next, and freeing them then would free that
 * guest's missing pages.
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
import { duplicateFd } from '../sys/descriptor.ts';
import {
  type AddressRange,
  forbidHugePages,
  openUserfaultfd,
  registerMissing,
  unregister,
  wake,
} from '../sys/userfaultfd.ts';
import type { Postcopy } from './device-model.ts';

/** One guest's postcopy, by the kernel's userfaultfd. Owns a descriptor of it until `close`. */
export class UserfaultPostcopy implements Postcopy {
  #fd: number;
  readonly #ranges: AddressRange[] = [];

  /** @throws SysError with what to do where this machine does not let us */
  constructor() {
    this.#fd = openUserfaultfd();
  }

  /** @returns a descriptor for the front end: the caller's, to be closed when it has been passed on. Throws SysError */
  shareFd(): number {
    return duplicateFd(this.#fd);
  }

  /**
   * Makes missing pages of mappings wait for the front end. To be called when they have been mapped and not yet touched. All or none.
   * @param ranges each one mapping: address and size multiples of its page size
   * @throws SysError
   */
  register(ranges: readonly AddressRange[]): void {
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

  /** @throws SysError if a range could not be freed; the rest is freed all the same */
  unregister(): void {
    this.#free(this.#ranges.splice(0));
  }

  /** As `unregister`, and closes our descriptor; the front end's is of no use to it any more. May be called twice. */
  close(): void {
    if (this.#fd < 0) return;
    const fd = this.#fd;
    try {
      this.unregister();
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
