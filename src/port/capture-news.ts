/**
 * What the main thread learns of capture files that lcores read and write: that one is at its end, has a fault, or takes no more.
 */
import { getSystemErrorMessage } from 'node:util';
import { describeCaptureFault } from '../net/capture-fault.ts';

/** Words shared: the first changes when there is news. Of a fault, the first one is kept. */
const CHANGES = 0;
/** files that are at their end */
const ENDS = 1;
/** whose fault: an fd and one more; 0 for none */
const FAULTY = 2;
const FAULT = 3;
const FAILED = 4;
const ERRNO = 5;
/** of float64: where the fault is, and what is there */
const FAULT_AT = 3;
const FAULT_FOUND = 4;
const BYTES = 40;

export const captureNews = () => new SharedArrayBuffer(BYTES);

export class CaptureNews {
  readonly #words: Int32Array;
  readonly #numbers: Float64Array;
  #closed = false;

  constructor(shared: SharedArrayBuffer) {
    this.#words = new Int32Array(shared);
    this.#numbers = new Float64Array(shared);
  }

  /** A file has no more frames. To be told once. */
  tellEnd(): void {
    Atomics.add(this.#words, ENDS, 1);
    this.#changed();
  }

  /** The file `fd` is broken (CAPTURE_FAULT). */
  tellFault(fd: number, fault: number, at: number, found: number): void {
    if (Atomics.compareExchange(this.#words, FAULTY, 0, fd + 1) !== 0) return;
    this.#numbers[FAULT_AT] = at;
    this.#numbers[FAULT_FOUND] = found;
    Atomics.store(this.#words, FAULT, fault);
    this.#changed();
  }

  /** Writing to file `fd` failed. May be told again and again. */
  tellFailed(fd: number, errno: number): void {
    if (this.#words[FAILED] !== 0 || Atomics.compareExchange(this.#words, FAILED, 0, fd + 1) !== 0) return;
    Atomics.store(this.#words, ERRNO, errno);
    this.#changed();
  }

  #changed(): void {
    Atomics.add(this.#words, CHANGES, 1);
    Atomics.notify(this.#words, CHANGES);
  }

  /** Files that are at their end. */
  get ends(): number {
    return Atomics.load(this.#words, ENDS);
  }

  /** What is wrong with a file, in one sentence. @param pathOf says whose fd it is */
  problem(pathOf: (fd: number) => string): string | undefined {
    const words = this.#words;
    const fault = Atomics.load(words, FAULT);
    if (fault !== 0)
      return describeCaptureFault(
        pathOf(words[FAULTY] - 1),
        fault,
        this.#numbers[FAULT_AT],
        this.#numbers[FAULT_FOUND],
      );
    const errno = Atomics.load(words, ERRNO);
    if (errno !== 0) return `${pathOf(words[FAILED] - 1)}: writing failed: ${getSystemErrorMessage(-errno)}`;
    return undefined;
  }

  /** Main thread: calls `told` after every change, until `close`. */
  watch(told: () => void): void {
    const seen = Atomics.load(this.#words, CHANGES);
    const wait = Atomics.waitAsync(this.#words, CHANGES, seen);
    const next = () => {
      if (this.#closed) return;
      this.watch(told);
      told();
    };
    if (wait.async) wait.value.then(next);
    else queueMicrotask(next);
  }

  /** Ends `watch`. */
  close(): void {
    this.#closed = true;
    Atomics.notify(this.#words, CHANGES);
  }
}
