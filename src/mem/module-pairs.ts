/**
 * A WebAssembly module over pairs of windows: an instance for each pair, made when it is first used, a few tens of microseconds.
 * An instance reaches its two windows, the scratch and what else it is given, and nothing else.
 */
import { SCRATCH_PAGES } from './copy-module.ts';
import type { WindowViews } from './window.ts';

/** Pairs of windows kept; beyond it all are forgotten and made again on use. */
const MAX_PAIRS = 4096;
const IDS = 65536;

export class ModulePairs<Exports> {
  /** private memory of this thread: what the module's functions are told, and what they tell */
  readonly scratch: WebAssembly.Memory;
  readonly #module: WebAssembly.Module;
  readonly #more: Readonly<Record<string, WebAssembly.Memory>>;
  readonly #pairs = new Map<number, Exports>();
  #key = -1;
  #pair: Exports | undefined;

  /**
   * @param module imports PAIR_MEMORIES, and `more` by name
   * @param scratch Default: one of its own.
   */
  constructor(
    module: WebAssembly.Module,
    scratch = new WebAssembly.Memory({ initial: SCRATCH_PAGES, maximum: SCRATCH_PAGES }),
    more: Readonly<Record<string, WebAssembly.Memory>> = {},
  ) {
    this.#module = module;
    this.scratch = scratch;
    this.#more = more;
  }

  /** The functions for a source and a destination window, both of kind 'wasm'. */
  of(src: WindowViews, dst: WindowViews): Exports {
    const key = src.id * IDS + dst.id;
    if (key === this.#key) return this.#pair as Exports;
    const pair = this.#pairs.get(key) ?? this.#make(key, src, dst);
    this.#key = key;
    this.#pair = pair;
    return pair;
  }

  #make(key: number, src: WindowViews, dst: WindowViews): Exports {
    if (this.#pairs.size >= MAX_PAIRS) this.#pairs.clear();
    const windows = { src: src.memory, dst: dst.memory } as Record<string, WebAssembly.Memory>;
    const memories = { ...windows, scratch: this.scratch, ...this.#more };
    const pair = new WebAssembly.Instance(this.#module, { m: memories }).exports as unknown as Exports;
    this.#pairs.set(key, pair);
    return pair;
  }
}
