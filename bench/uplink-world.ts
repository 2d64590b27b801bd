/**
 * The world's end of an uplink: it sends frames into an interface, many in one call, and knows what has come out of it. What comes the
 * kernel counts and throws away, which takes nothing of the load generator's time.
 */
import { closeSync, readFileSync } from 'node:fs';
import { KERNEL_HEADER_BYTES } from '../src/port/kernel-frame.ts';
import { addressOf, EAGAIN } from '../src/sys/libc.ts';
import { MessageBatch } from '../src/sys/message-batch.ts';
import { findInterface } from '../src/sys/netlink.ts';
import { bindPacketSocket, bypassQdisc, openPacketSocket } from '../src/sys/packet-socket.ts';

const ENOBUFS = 105;
const SEND_BYTES = 2 ** 23;

/** What has come out of an interface since it was made. */
export interface Received {
  packets: number;
  bytes: number;
}

/** By the kernel's counters, in the network namespace of this process. */
export function receivedAt(name: string): Received {
  const line = readFileSync('/proc/self/net/dev', 'utf8')
    .split('\n')
    .map((text) => text.trim().split(/[\s:]+/))
    .find((words) => words[0] === name);
  if (line === undefined) throw new Error(`there is no interface ${name}`);
  return { bytes: Number(line[1]), packets: Number(line[2]) };
}

/** Sends frames that lie ready, round and round. */
export class WorldSender {
  /** frames that the kernel took, and those for which it had no room */
  sent = 0;
  refused = 0;
  readonly #fd: number;
  readonly #memory: Uint8Array;
  readonly #address: number;
  readonly #stride: number;
  readonly #len: number;
  readonly #n: number;
  readonly #batch: MessageBatch;
  #next = 0;

  /**
   * @param frames of equal length
   * @param header the first KERNEL_HEADER_BYTES of their virtio_net_hdr
   * @param burst frames in a call, at most
   */
  constructor(name: string, frames: readonly Uint8Array[], header: Uint8Array, burst: number) {
    const found = findInterface(name);
    if (found === undefined) throw new Error(`there is no interface ${name}`);
    this.#n = frames.length;
    this.#len = KERNEL_HEADER_BYTES + frames[0].length;
    this.#stride = Math.ceil(this.#len / 64) * 64;
    this.#memory = new Uint8Array(this.#n * this.#stride);
    for (const [i, frame] of frames.entries()) {
      this.#memory.set(header.subarray(0, KERNEL_HEADER_BYTES), i * this.#stride);
      this.#memory.set(frame, i * this.#stride + KERNEL_HEADER_BYTES);
    }
    this.#address = Number(addressOf(this.#memory));
    this.#batch = new MessageBatch(burst, burst);
    this.#fd = openPacketSocket(SEND_BYTES);
    bypassQdisc(this.#fd);
    bindPacketSocket(this.#fd, found.index, false);
  }

  /** Offers the next `n` frames to the kernel. @returns how many it took */
  send(n: number): number {
    const batch = this.#batch;
    batch.clear();
    for (let k = 0; k < n; k++) {
      batch.begin();
      batch.add(this.#address + this.#next * this.#stride, this.#len);
      this.#next = this.#next + 1 === this.#n ? 0 : this.#next + 1;
    }
    let took = 0;
    for (let done = 0; done < n; ) {
      const taken = batch.send(this.#fd, done);
      if (taken > 0) {
        done += taken;
        took += taken;
      } else if (taken === -ENOBUFS || taken === -EAGAIN) {
        // the interface's queue is full: this frame is lost, as on a wire
        done++;
        this.refused++;
      } else throw new Error(`the interface takes no frames: errno ${-taken}`);
    }
    this.sent += took;
    return took;
  }

  close(): void {
    closeSync(this.#fd);
  }
}
