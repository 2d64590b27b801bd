/**
 * rxonly: what arrives is counted and goes nowhere.
 */
import type { Stream } from '../stream.ts';
import type { Mode } from './mode.ts';

export class RxOnlyMode implements Mode {
  readonly #stream: Stream;

  constructor(stream: Stream) {
    this.#stream = stream;
  }

  turn(): number {
    const n = this.#stream.receive();
    if (n > 0) this.#stream.complete();
    return n;
  }
}
