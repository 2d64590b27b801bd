/**
 * Where a device stands in a postcopy migration. The userfaultfd itself is the business of who makes the `Postcopy`.
 * @see QEMU docs/interop/vhost-user.rst "Migration", from "In postcopy migration" on
 */
import { ProtocolError } from '../errors.ts';
import type { GuestMemory } from '../mem/guest-memory.ts';
import type { Postcopy } from './device-model.ts';
import type { VringRunner } from './vring-runner.ts';

export class PostcopyPhases {
  readonly #memory: GuestMemory;
  readonly #runner: VringRunner;
  readonly #create: (() => Postcopy) | undefined;
  #postcopy: Postcopy | undefined;
  #listening = false;

  /** Holds the runner's vrings while memory is not to be touched. */
  constructor(memory: GuestMemory, runner: VringRunner, create: (() => Postcopy) | undefined) {
    this.#memory = memory;
    this.#runner = runner;
    this.#create = create;
  }

  /** @returns the userfaultfd for the front end; the caller owns it */
  advise(): number {
    if (this.#create === undefined)
      throw new ProtocolError('BAD_POSTCOPY', 'POSTCOPY_ADVISE', 'postcopy migration is not offered');
    this.end();
    const postcopy = this.#create();
    try {
      const fd = postcopy.shareFd();
      this.#postcopy = postcopy;
      this.#runner.incoming = true;
      return fd;
    } catch (error) {
      postcopy.close();
      throw error;
    }
  }

  listen(): void {
    if (this.#postcopy === undefined)
      throw new ProtocolError('BAD_POSTCOPY', 'POSTCOPY_LISTEN', 'POSTCOPY_ADVISE must come first');
    this.#listening = true;
  }

  /** Memory is about to be unmapped. */
  unregister(): void {
    this.#postcopy?.unregister();
  }

  /** New memory has been mapped, and nobody has touched it. While listening it stays so until `ready`. */
  register(): void {
    if (this.#postcopy === undefined || !this.#listening) return;
    const { ranges } = this.#memory;
    const split = ranges.findIndex(({ length }) => length !== 1);
    if (split >= 0) {
      const problem = `guest memory region ${split} is too large to be mapped in one piece: postcopy migration takes regions below 2 GiB`;
      throw new ProtocolError('BAD_POSTCOPY', 'SET_MEM_TABLE', problem);
    }
    this.#runner.held = true;
    this.#postcopy.register(ranges.flat());
  }

  /** Fails while memory must be given as a whole. */
  refuseChange(request: string): void {
    if (this.#listening)
      throw new ProtocolError('BAD_POSTCOPY', request, 'memory slots and postcopy migration do not go together');
  }

  /** The front end knows where memory is mapped. */
  ready(): void {
    this.#runner.held = false;
  }

  /** It is over, or never was. */
  end(): void {
    const postcopy = this.#postcopy;
    this.#postcopy = undefined;
    this.#listening = false;
    this.#runner.held = false;
    this.#runner.incoming = false;
    postcopy?.close();
  }
}
