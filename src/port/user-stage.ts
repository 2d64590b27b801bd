/**
 * What a thread's virtio-user port has to run its rings in WebAssembly: the module over its windows, and private memory where the rings'
 * state lies while the thread has them.
 */
import { ModulePairs } from '../mem/module-pairs.ts';
import type { WindowViews } from '../mem/window.ts';
import type { RingStage } from '../virtio-net/ring-stage.ts';
import { BYTES_OFF, MAX_STATE_PAGES, type UserExports, userModule } from './user-module.ts';
import { type RingModule, stateBytes } from './user-ring.ts';

const WASM_PAGE = 65536;
const LINE = 64;
/** States begin behind the word at BYTES_OFF. */
const FIRST_STATE_OFF = LINE;

const roomOf = (size: number) => Math.ceil(stateBytes(size) / LINE) * LINE;

/** One for all ports of the thread. */
let compiled: WebAssembly.Module | undefined;

export class UserStage {
  readonly #window: WindowViews;
  readonly #pairs: ModulePairs<UserExports>;
  readonly #memory: WebAssembly.Memory;
  readonly #bytes: Int32Array;
  #end = FIRST_STATE_OFF;

  /** @returns undefined where there is no WebAssembly for it: in a window of kind 'view', or if there is too much of the rings */
  static for(ringStage: RingStage, window: WindowViews, sizes: readonly number[]): UserStage | undefined {
    const bytes = sizes.reduce((sum, size) => sum + roomOf(size), FIRST_STATE_OFF);
    const pages = Math.ceil(bytes / WASM_PAGE);
    if (window.memory === undefined || pages > MAX_STATE_PAGES) return undefined;
    return new UserStage(ringStage, window, pages);
  }

  private constructor({ scratch }: RingStage, window: WindowViews, pages: number) {
    compiled ??= userModule();
    const state = new WebAssembly.Memory({ initial: pages, maximum: pages });
    this.#window = window;
    this.#memory = state;
    this.#pairs = new ModulePairs(compiled, scratch, { state });
    this.#bytes = new Int32Array(state.buffer, BYTES_OFF, 1);
  }

  /** For the next of the rings that the stage was made for. */
  ring(size: number): RingModule {
    const off = this.#end;
    this.#end += roomOf(size);
    return { run: this.#pairs.of(this.#window, this.#window), memory: this.#memory.buffer, off };
  }

  /** Functions that copy from `src`, a window of kind 'wasm'. */
  from(src: WindowViews): UserExports {
    return this.#pairs.of(src, this.#window);
  }

  /** Bytes of the packets that `list` or `place` has dealt with last. */
  get bytes(): number {
    return this.#bytes[0];
  }
}
