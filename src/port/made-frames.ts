/**
 * Packets that a port's kernel does not take as they are: what they leave undone is done here, in memory of the port's own.
 */

import type { WindowViews } from '../mem/window.ts';
import type { WindowAddresses } from '../mem/window-address.ts';
import { MIN_BOUNCE_BYTES, OffloadStage } from '../virtio-net/offload-stage.ts';
import type { DeviceTools } from './device-port.ts';

/** What one lcore's port takes of its window. */
export const MADE_BYTES = Math.ceil((MIN_BOUNCE_BYTES + 64) / 4096) * 4096;

/** One port's. */
export class MadeFrames {
  readonly #tools: DeviceTools;
  readonly #addresses: WindowAddresses;
  readonly #stage: OffloadStage;

  /** @param views the window of which the port alone writes to the MADE_BYTES at `off` */
  constructor(tools: DeviceTools, addresses: WindowAddresses, views: WindowViews, off: number) {
    this.#tools = tools;
    this.#addresses = addresses;
    this.#stage = new OffloadStage(views, off, MADE_BYTES);
  }

  /** Makes finished frames of packet `i`, in place of those before. @returns how many; none: its headers are malformed */
  make(i: number): number {
    const { burst } = this.#tools.ringStage;
    this.#stage.reset();
    const n = this.#stage.convertPacket(this.#tools.windows, burst, i);
    return Math.max(n, 0);
  }

  /** Where a frame begins. */
  address(frame: number): number {
    return this.#addresses.of(this.#stage.window, this.#stage.off[frame]);
  }

  /** Bytes of a frame. */
  len(frame: number): number {
    return this.#stage.len[frame];
  }
}
