/**
 * Moves a device's own state through a pipe of the front end's, in the background.
 * @see QEMU docs/interop/vhost-user.rst "Migrating back-end state"
 */
import { closeSync } from 'node:fs';
import { ProtocolError } from '../errors.ts';
import { isPipe, PipeEnd } from '../sys/pipe.ts';
import { ReadWatch } from '../sys/unix-socket.ts';

/** More state than this no device has, and no front end may send. */
export const MAX_STATE_BYTES = 2 ** 20;
/** A transfer that takes longer has failed: the front end waits for it, and its connection with it. */
const LIMIT_MS = 30_000;

/** True when all is done, false when not, a promise when all has been moved and something is left to do. */
type Step = (pipe: PipeEnd) => boolean | Promise<void>;

const failure = (problem: string) => new ProtocolError('BAD_STATE', 'CHECK_DEVICE_STATE', problem);

export class StateTransfer {
  /** Resolves when all has been moved and the fd closed; rejects with what went wrong, and then it is closed, too. */
  readonly ended: Promise<void>;
  readonly #pipe: PipeEnd;
  readonly #watch: ReadWatch;
  readonly #resolve: () => void;
  readonly #reject: (error: Error) => void;
  readonly #timer: NodeJS.Timeout;
  /** all bytes are here, and what becomes of them is being awaited */
  #moved = false;
  #over = false;

  /**
   * Takes `fd` over, also on failure. `step` is called whenever the pipe is ready, until it says that all is done, or will be when its
   * promise resolves.
   * @throws ProtocolError if `fd` is no pipe
   */
  private constructor(fd: number, writes: boolean, limitMs: number, step: Step) {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.ended = promise;
    promise.catch(() => {}); // it is told to who asks; nobody may ask
    this.#resolve = resolve;
    this.#reject = reject;
    try {
      if (!isPipe(fd)) throw new ProtocolError('BAD_STATE', 'SET_DEVICE_STATE_FD', 'the file descriptor is not a pipe');
      this.#pipe = new PipeEnd(fd);
    } catch (error) {
      closeSync(fd);
      throw error;
    }
    const onReady = () => this.#step(step);
    this.#watch = new ReadWatch(fd, onReady);
    if (writes) {
      this.#watch.pause();
      this.#watch.resume(onReady, true);
    }
    this.#timer = setTimeout(() => this.abort(`it has not ended within ${limitMs} ms`), limitMs).unref();
  }

  /** Writes `state` and closes the pipe. */
  static save(fd: number, state: Uint8Array, limitMs = LIMIT_MS): StateTransfer {
    let done = 0;
    return new StateTransfer(fd, true, limitMs, (pipe) => {
      done += pipe.write(state, done);
      return done === state.length;
    });
  }

  /** Reads the pipe to its end, then calls `onState`, whose error fails the transfer; it has ended when that has. */
  static load(fd: number, onState: (state: Uint8Array) => Promise<void> | void, limitMs = LIMIT_MS): StateTransfer {
    const parts: Uint8Array[] = [];
    let size = 0;
    return new StateTransfer(fd, false, limitMs, (pipe) => {
      const part = pipe.read();
      if (part === undefined) return false;
      if (part.length === 0) return onState(Buffer.concat(parts)) ?? true;
      size += part.length;
      if (size > MAX_STATE_BYTES) throw failure(`the state is larger than ${MAX_STATE_BYTES} bytes`);
      parts.push(part);
      return false;
    });
  }

  /** Gives up, if it has not ended. */
  abort(problem: string): void {
    this.#end(failure(problem));
  }

  #step(step: Step): void {
    if (this.#over || this.#moved) return;
    const fail = (error: Error) => this.#end(error instanceof ProtocolError ? error : failure(error.message));
    try {
      const done = step(this.#pipe);
      if (done === true) this.#end(undefined);
      else if (done !== false) {
        this.#moved = true;
        this.#watch.pause(); // the pipe's end stays readable
        done.then(() => this.#end(undefined), fail);
      }
    } catch (error) {
      fail(error as Error);
    }
  }

  #end(error: Error | undefined): void {
    if (this.#over) return;
    this.#over = true;
    clearTimeout(this.#timer);
    this.#watch.close();
    this.#pipe.close();
    if (error === undefined) this.#resolve();
    else this.#reject(error);
  }
}
