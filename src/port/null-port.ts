/**
 * net_null: packets of one size without end are received, or none; whatever is sent is swallowed. To measure what everything else
 * costs.
 */

import { CopyStage } from '../mem/copy-stage.ts';
import type { WindowHandle, WindowViews } from '../mem/window.ts';
import { PORT_SLOTS } from '../stats/counters.ts';
import { BURST_SIZE } from '../virtio-net/burst.ts';
import { MAX_GSO_BYTES } from '../virtio-net/offload-stage.ts';
import { BurstCopy } from './burst-copy.ts';
import type { DeviceOpening, DevicePort, DeviceSpec, DeviceTools, OpenedDevice } from './device-port.ts';
import { addFrame, countReceived, Sent } from './frame-burst.ts';
import { localMac, PortWindow } from './port-window.ts';
import type { VdevOf } from './vdev.ts';

/** What an lcore makes its port from. */
export interface NullSpec extends DeviceSpec {
  readonly window: WindowHandle;
  /** where in the window this lcore's packets are: BURST_SIZE, then one to copy from, then room for one that is sent */
  readonly off: number;
  /** bytes of the packets that are received */
  readonly size: number;
  /** packets are copied, as from and to a card's own memory */
  readonly copy: boolean;
  readonly noRx: boolean;
}

const CACHE_LINE = 64;
/** Every packet begins at a cache line. */
const strideOf = (size: number) => Math.ceil(size / CACHE_LINE) * CACHE_LINE;

/** Opens `net_null…`. */
export function openNull(vdev: VdevOf<'net_null'>, opening: DeviceOpening): OpenedDevice<NullSpec> {
  const { size, copy, 'no-rx': noRx } = vdev.values;
  const window = new PortWindow(opening, (BURST_SIZE + 1) * strideOf(size) + MAX_GSO_BYTES);
  return {
    name: vdev.name,
    mac: localMac(vdev.name, 'null'),
    mtu: 1500,
    link: { up: true, speed: 10_000 },
    spec: (lcore) => ({ windows: [window.handle], window: window.handle, off: window.off(lcore), size, copy, noRx }),
    onLink: () => {},
    close: async () => window.close(),
  };
}

export class NullPort implements DevicePort {
  readonly id: number;
  readonly counters: Float64Array;
  readonly queues: number;
  readonly eventFds: readonly number[] = [];
  readonly canTransmit = true;
  readonly #tools: DeviceTools;
  readonly #spec: NullSpec;
  readonly #views: WindowViews;
  readonly #stride: number;
  readonly #stage = new CopyStage();
  readonly #copy: BurstCopy;
  readonly #sent: Sent;

  constructor(id: number, counters: Float64Array, spec: NullSpec, tools: DeviceTools) {
    this.id = id;
    this.counters = counters;
    this.#spec = spec;
    this.#tools = tools;
    this.queues = spec.noRx ? 0 : 1;
    this.#views = tools.windows[spec.window.id];
    this.#stride = strideOf(spec.size);
    this.#copy = new BurstCopy({ burst: tools.ringStage.burst, windows: tools.windows }, this.#views);
    this.#sent = new Sent(counters, tools.ringStage.burst);
  }

  receive(): number {
    const { burst } = this.#tools.ringStage;
    const { off, size, copy, noRx } = this.#spec;
    burst.clear();
    if (noRx) return 0;
    const n = burst.limit;
    if (copy) {
      const { list } = this.#stage;
      for (let i = 0; i < n; i++) {
        list[3 * i] = off + BURST_SIZE * this.#stride;
        list[3 * i + 1] = off + i * this.#stride;
        list[3 * i + 2] = size;
      }
      this.#stage.flush(this.#views, this.#views, n);
    }
    for (let i = 0; i < n; i++) addFrame(burst, this.#views, off + i * this.#stride, size);
    return countReceived(this.counters, burst);
  }

  transmit(list: Int32Array, from: number, to: number): number {
    const { len } = this.#tools.ringStage.burst;
    const { off, copy } = this.#spec;
    const at = off + (BURST_SIZE + 1) * this.#stride;
    for (let k = from; k < to; k++) {
      const i = list[k];
      if (len[i] < 0) this.counters[PORT_SLOTS.rx_drop_bad_offload]++;
      else if (len[i] > MAX_GSO_BYTES) this.counters[PORT_SLOTS.rx_drop_too_big]++;
      else {
        if (copy) this.#copy.add(i, at);
        this.#sent.add(i);
      }
    }
    this.#copy.flush();
    return this.#sent.count();
  }

  complete(): void {}

  prepareSleep(): boolean {
    return this.#spec.noRx;
  }

  drain(): void {}

  close(): void {}
}
