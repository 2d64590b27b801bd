/**
 * A WebAssembly module over pairs of windows: an instance for each pair, made when it is first used, a few tens of microseconds.
 * An instance reaches its two windows and the scratch, and nothing else.
 */
import { SCRATCH_PAGES } from './copy-module.ts';
import type { WindowViews } from './window.ts';

/** Pairs of windows kept; beyond it all are forgotten and made again on use. */
const MAX_PAIRS = 4096;
const IDS = 65536;

export class ModulePairs<Exports> {
  /** private memory of this thread: what the module's functions are told, and what they tell */
  readonly scratch = new WebAssembly.Memory({ initial: SCRATCH_PAGES, maximum: SCRATCH_PAGES });
  readonly #module: WebAssembly.Module;
  readonly #pairs = new Map<number, Exports>();
  #key = -1;
  #pair: Exports | undefined;

  /** @param module imports PAIR_MEMORIES */
  constructor(module: WebAssembly.Module) {
    this.#module = module;
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
    const memories = { src: src.memory, dst: dst.memory, scratch: this.scratch } as Record<string, WebAssembly.Memory>;
    const pair = new WebAssembly.Instance(this.#module, { m: memories }).exports as unknown as Exports;
    this.#pairs.set(key, pair);
    return pair;
  }
}
