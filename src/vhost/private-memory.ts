/**
 * Finds out that a front end keeps its guest's memory to itself: QEMU without share=on maps the file it gives us privately, so that
 * nothing the guest writes ever gets there. For us the receive ring then stays blank, although the guest kicks to say that it has
 * filled it.
 */
import { eventfdCount } from '../sys/eventfd.ts';
import { NO_FD } from './vhost-device.ts';

const LOOK_MS = 1000;
/** QEMU makes a kick eventfd with a count of 1; a second kick is the driver's own, which it sends after filling the ring. */
const KICKS = 2;

export class PrivateMemoryWatch {
  #timer: NodeJS.Timeout | undefined;

  /**
   * Looks until the ring is no longer blank, or it has been so twice although its guest had kicked: then calls `onPrivate`.
   * @param isBlank must not throw
   */
  start(kickFd: number, isBlank: () => boolean, onPrivate: () => void): void {
    this.stop();
    if (kickFd === NO_FD) return;
    let suspected = false;
    const look = () => {
      const kicked = countOf(kickFd) >= KICKS;
      if (!isBlank()) this.stop();
      else if (kicked && suspected) {
        this.stop();
        onPrivate();
      } else suspected = kicked;
    };
    this.#timer = setInterval(look, LOOK_MS).unref();
  }

  /** To be called before the eventfd is closed. */
  stop(): void {
    clearInterval(this.#timer);
  }
}

/** The count, or 0 where it cannot be read for the moment: this process may have no file descriptor left. */
function countOf(kickFd: number): number {
  try {
    return eventfdCount(kickFd);
  } catch {
    return 0;
  }
}
