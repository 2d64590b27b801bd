/**
 * txonly: sends UDP datagrams of one flow, or of 256 that differ in where they come from, and looks at nothing that arrives.
 */
import { ETHHDR, IPHDR, UDPHDR } from '../../uapi/ip.ts';
import { MAX_SEGMENTS } from '../../virtqueue/segments.ts';
import type { Stream } from '../stream.ts';
import type { Workshop } from '../workshop.ts';
import type { Mode, ModeSettings } from './mode.ts';
import { putUdpFrame } from './udp-frame.ts';

const MULTI_FLOWS = 256;
const CACHE_LINE = 64;
/** The shortest frame that there is room for all headers in. */
export const MIN_MADE_BYTES = ETHHDR.size + IPHDR.size + UDPHDR.size;

export class TxOnlyMode implements Mode {
  readonly #stream: Stream;
  readonly #workshop: Workshop;
  readonly #burst: number;
  readonly #lens: readonly number[];
  /** flow n's frame lies n times the stride from there on */
  readonly #off: number;
  readonly #stride: number;
  /** less one */
  readonly #flowMask: number;
  #next = 0;

  constructor(stream: Stream, workshop: Workshop, { burst, txpkts, made }: ModeSettings) {
    this.#stream = stream;
    this.#workshop = workshop;
    this.#burst = Math.min(burst, Math.floor(MAX_SEGMENTS / txpkts.length));
    this.#lens = txpkts;
    const bytes = txpkts.reduce((sum, len) => sum + len, 0);
    const flows = made.txMultiFlow ? MULTI_FLOWS : 1;
    this.#stride = Math.ceil(bytes / CACHE_LINE) * CACHE_LINE;
    this.#flowMask = flows - 1;
    this.#off = workshop.allocMuch(flows * this.#stride);
    workshop.own.u8.fill(0, this.#off, this.#off + flows * this.#stride);
    const { peer, own } = stream.plan;
    for (let flow = 0; flow < flows; flow++) {
      const { dest } = made.txFlow;
      // where DPDK's come from: behind the address they go to, in the network of its next-to-last byte
      const source = made.txMultiFlow ? ((dest | (flow << 8)) + 1) >>> 0 : made.txFlow.source;
      putUdpFrame(workshop.own.dv, this.#off + flow * this.#stride, bytes, peer, own, { ...made.txFlow, source });
    }
  }

  turn(): number {
    const workshop = this.#workshop;
    const { segments, len: lens, first } = workshop.burst;
    workshop.clear();
    // each in as many segments as were asked for
    for (let i = 0; i < this.#burst; i++) {
      const frame = this.#off + this.#next * this.#stride;
      this.#next = (this.#next + 1) & this.#flowMask;
      workshop.put(i, frame, this.#lens[0]);
      let off = frame + this.#lens[0];
      for (let k = 1; k < this.#lens.length; k++) {
        segments.push(workshop.own.id, off, this.#lens[k]);
        off += this.#lens[k];
      }
      lens[i] = off - frame;
      first[i + 1] = segments.count;
    }
    return this.#stream.sendAll();
  }
}
