/**
 * net_tap on the thread that uses it: one queue of a TAP interface. Each frame is a system call, to read or to write, with a
 * virtio_net_hdr in front as guests have it; what is written the kernel takes from where it lies.
 */

import type { WindowHandle, WindowViews } from '../mem/window.ts';
import { WindowAddresses } from '../mem/window-address.ts';
import { PORT_SLOTS } from '../stats/counters.ts';
import { addressOf } from '../sys/libc.ts';
import { FramePieces, readFrame } from '../sys/tap.ts';
import { VIRTIO_NET_HDR_MRG_RXBUF } from '../uapi/virtio-net.ts';
import { BURST_SEGMENTS, BURST_SIZE } from '../virtio-net/burst.ts';
import { MAX_GSO_BYTES } from '../virtio-net/offload-stage.ts';
import type { DevicePort, DeviceSpec, DeviceTools } from './device-port.ts';
import { putFrame, writeHeader } from './kernel-frame.ts';
import { MADE_BYTES, MadeFrames } from './made-frames.ts';
import { SendOutcome } from './send-outcome.ts';

/** Bytes in front of each frame: a guest's header, num_buffers too. */
export const TAP_HEADER_BYTES = VIRTIO_NET_HDR_MRG_RXBUF.size;

/** Room for one frame with its header; whole cache lines. */
const BUFFER_BYTES = Math.ceil((TAP_HEADER_BYTES + MAX_GSO_BYTES) / 64) * 64;
/** What a queue has in the window: room for a burst, and for what is made of a packet. */
export const TAP_QUEUE_BYTES = BURST_SIZE * BUFFER_BYTES + MADE_BYTES;
/** Rounds in which an interface that had nothing is not asked again: a system call that finds nothing is dear. */
const PAUSE_ROUNDS = 7;

/** What an lcore makes its port from. The descriptor stays the main thread's. */
export interface TapSpec extends DeviceSpec {
  readonly window: WindowHandle;
  /** where in the window the queue's TAP_QUEUE_BYTES are */
  readonly off: number;
  readonly fd: number;
  /** NEED_… that the kernel takes undone */
  readonly accepts: number;
}

export class TapPort implements DevicePort {
  readonly id: number;
  readonly counters: Float64Array;
  readonly queues = 1;
  readonly eventFds: readonly number[];
  readonly canTransmit = true;
  readonly #tools: DeviceTools;
  readonly #addresses: WindowAddresses;
  readonly #views: WindowViews;
  readonly #off: number;
  readonly #fd: number;
  readonly #pieces = new FramePieces(1 + BURST_SEGMENTS);
  readonly #header = new Uint8Array(TAP_HEADER_BYTES);
  readonly #headerAddress: number;
  readonly #outcome: SendOutcome;
  readonly #made: MadeFrames;
  readonly #accepts: number;
  #pause = 0;

  constructor(id: number, counters: Float64Array, { window, off, fd, accepts }: TapSpec, tools: DeviceTools) {
    this.id = id;
    this.counters = counters;
    this.#tools = tools;
    this.#addresses = new WindowAddresses(tools.windows);
    this.#views = tools.windows[window.id];
    this.#off = off;
    this.#fd = fd;
    this.eventFds = [fd];
    this.#headerAddress = Number(addressOf(this.#header));
    this.#outcome = new SendOutcome(counters, tools.ringStage.burst);
    this.#made = new MadeFrames(tools, this.#addresses, this.#views, off + BURST_SIZE * BUFFER_BYTES);
    this.#accepts = accepts;
  }

  receive(): number {
    const { burst } = this.#tools.ringStage;
    burst.clear();
    if (this.#pause > 0) {
      this.#pause--;
      return 0;
    }
    let bytes = 0;
    while (burst.count < BURST_SIZE) {
      const at = this.#off + burst.count * BUFFER_BYTES;
      const len = readFrame(this.#fd, this.#addresses.of(this.#views.id, at), BUFFER_BYTES) - TAP_HEADER_BYTES;
      if (len < 0) {
        this.#pause = PAUSE_ROUNDS;
        break;
      }
      putFrame(burst, this.#views, at + TAP_HEADER_BYTES, len, at);
      bytes += len;
    }
    this.counters[PORT_SLOTS.tx_packets] += burst.count;
    this.counters[PORT_SLOTS.tx_bytes] += bytes;
    return burst.count;
  }

  complete(): void {}

  transmit(list: Int32Array, from: number, to: number): number {
    const { burst } = this.#tools.ringStage;
    const { segments, first, needs } = burst;
    const pieces = this.#pieces;
    let delivered = 0;
    for (let k = from; k < to; ) {
      const i = list[k];
      if ((needs[i] & ~this.#accepts) !== 0) {
        delivered += this.#sendMade(i);
        k++;
        continue;
      }
      writeHeader(burst, i, this.#header, 0);
      pieces.clear();
      pieces.add(this.#headerAddress, TAP_HEADER_BYTES);
      for (let s = first[i]; s < first[i + 1]; s++)
        pieces.add(this.#addresses.of(segments.window[s], segments.off[s]), segments.len[s]);
      const status = pieces.write(this.#fd);
      if (status < 0) k += this.#outcome.refused(-status, to - k);
      else {
        this.#outcome.sent(list, k, k + 1);
        delivered++;
        k++;
      }
    }
    return delivered;
  }

  /** Sends what packet `i` becomes, as far as the kernel takes it. @returns 1 if that is all of it */
  #sendMade(i: number): number {
    const made = this.#made;
    const pieces = this.#pieces;
    const frames = made.make(i);
    if (frames === 0) {
      this.#outcome.malformed();
      return 0;
    }
    this.#header.fill(0);
    for (let frame = 0; frame < frames; ) {
      pieces.clear();
      pieces.add(this.#headerAddress, TAP_HEADER_BYTES);
      pieces.add(made.address(frame), made.len(frame));
      const status = pieces.write(this.#fd);
      if (status < 0) {
        // without one of its parts the packet is of no use
        if (this.#outcome.refused(-status, 1) > 0) return 0;
        continue;
      }
      this.#outcome.sentMade(i, 1, made.len(frame), frame === frames - 1);
      frame++;
    }
    return 1;
  }

  /** What comes after the last read that found nothing is told by the descriptor. */
  prepareSleep(): boolean {
    return true;
  }

  drain(): void {}

  close(): void {}
}
