/**
 * Memory whose writer dies between two stores: views of a window that count every store made through them, Atomics.store included, and
 * throw Death instead of the one that is one too many. What was stored before stays. WebAssembly does not see the window.
 */
import type { WindowViews } from '../../src/mem/window.ts';

export class Death extends Error {}

export class DyingWriter {
  readonly views: WindowViews;
  /** stores made so far */
  stores = 0;
  /** stores it makes before it dies */
  dieAfter = Number.POSITIVE_INFINITY;
  readonly #real = new Map<object, object>();

  constructor(views: WindowViews) {
    const wrap = <T extends object>(array: T): T => {
      const proxy = new Proxy(array, {
        get: (target, property) => Reflect.get(target, property, target),
        set: (target, property, value) => {
          this.step();
          return Reflect.set(target, property, value, target);
        },
      });
      this.#real.set(proxy, array);
      return proxy;
    };
    const { u8, u16, i32, dv } = views;
    this.views = {
      ...views,
      memory: undefined,
      u8: wrap(u8),
      u16: wrap(u16),
      i32: wrap(i32),
      dv: this.#dataView(dv),
    };
  }

  /** What of a DataView devices use. */
  #dataView(dv: DataView): DataView {
    const counted = <T>(set: (off: number, value: T, little?: boolean) => void) => {
      const bound = set.bind(dv);
      return (off: number, value: T, little?: boolean) => {
        this.step();
        bound(off, value, little);
      };
    };
    return {
      getUint8: dv.getUint8.bind(dv),
      getUint16: dv.getUint16.bind(dv),
      getInt32: dv.getInt32.bind(dv),
      setUint16: counted(dv.setUint16),
      setInt32: counted(dv.setInt32),
    } as Partial<DataView> as DataView;
  }

  /** What every store does: dies if it is one too many. */
  step(): void {
    if (this.stores >= this.dieAfter) throw new Death();
    this.stores++;
  }

  /** Runs `write`. @returns false if it died */
  live(write: () => void): boolean {
    const { load, store } = Atomics;
    const realOf = <T extends object>(array: T) => (this.#real.get(array) ?? array) as T;
    Atomics.load = ((array: Int32Array, i: number) => load(realOf(array), i)) as typeof load;
    Atomics.store = ((array: Int32Array, i: number, value: number) => {
      if (this.#real.has(array)) this.step();
      return store(realOf(array), i, value);
    }) as typeof store;
    try {
      write();
      return true;
    } catch (error) {
      if (error instanceof Death) return false;
      throw error;
    } finally {
      Object.assign(Atomics, { load, store });
    }
  }
}
