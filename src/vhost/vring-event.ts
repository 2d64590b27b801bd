/**
 * An eventfd of a vring: the one the front end gave, or one of the device's own where kicks, calls and errors come and go as messages.
 * So the datapath need not know of in-band notifications.
 * @see QEMU docs/interop/vhost-user.rst "In-band notifications"
 */
import { closeSync } from 'node:fs';
import { createEventfd, drain, signal } from '../sys/eventfd.ts';
import { ReadWatch } from '../sys/unix-socket.ts';
import { NO_FD } from './vhost-device.ts';

export class VringEvent {
  #fd = NO_FD;
  /** the front end has said which eventfd to use, or that there is none */
  #given = false;
  /** the eventfd is the device's own */
  #own = false;
  #watch: ReadWatch | undefined;
  #onSignal: (() => void) | undefined;

  get fd(): number {
    return this.#fd;
  }

  /** Takes the front end's eventfd over, or NO_FD, and closes what there was. */
  give(fd: number): void {
    this.#drop();
    this.#fd = fd;
    this.#given = true;
  }

  /**
   * Makes an eventfd of the device's own, unless there is one or the front end has spoken. With `onSignal` it is watched on the event
   * loop, which calls that after each signal.
   */
  makeOwn(onSignal?: () => void): void {
    if (this.#given || this.#own) return;
    this.#fd = createEventfd();
    this.#own = true;
    this.#onSignal = onSignal;
    if (onSignal !== undefined) this.#watch = new ReadWatch(this.#fd, () => this.flush());
  }

  /** Signals an eventfd of the device's own. The front end's is left alone: it might block. */
  signalOwn(): void {
    if (this.#own) signal(this.#fd);
  }

  /** Passes on a signal that the event loop has not seen yet. */
  flush(): void {
    if (this.#watch !== undefined && drain(this.#fd) > 0) this.#onSignal?.();
  }

  /** Closes the eventfd and forgets what the front end said. */
  close(): void {
    this.#drop();
    this.#given = false;
  }

  #drop(): void {
    this.#watch?.close();
    this.#watch = undefined;
    this.#onSignal = undefined;
    if (this.#fd !== NO_FD) closeSync(this.#fd);
    this.#fd = NO_FD;
    this.#own = false;
  }
}
