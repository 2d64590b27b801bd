/**
 * txonly: sends UDP datagrams of one flow, from 198.18.0.1 port 9 to 198.18.0.2 port 9 (RFC 2544's addresses, the discard service),
 * and looks at nothing that arrives.
 */
import { ETHHDR, IPHDR, UDPHDR } from '../../uapi/ip.ts';
import { MAX_SEGMENTS } from '../../virtqueue/segments.ts';
import type { Stream } from '../stream.ts';
import type { Workshop } from '../workshop.ts';
import type { Mode, ModeSettings } from './mode.ts';
import { type Ipv4Flow, putUdpFrame } from './udp-frame.ts';

const FLOW: Ipv4Flow = { source: 0xc6120001, dest: 0xc6120002, sourcePort: 9, destPort: 9 };
/** The shortest frame that there is room for all headers in. */
export const MIN_MADE_BYTES = ETHHDR.size + IPHDR.size + UDPHDR.size;

export class TxOnlyMode implements Mode {
  readonly #stream: Stream;
  readonly #workshop: Workshop;
  readonly #burst: number;
  readonly #lens: readonly number[];
  readonly #off: number;

  constructor(stream: Stream, workshop: Workshop, { burst, txpkts }: ModeSettings) {
    this.#stream = stream;
    this.#workshop = workshop;
    this.#burst = Math.min(burst, Math.floor(MAX_SEGMENTS / txpkts.length));
    this.#lens = txpkts;
    const bytes = txpkts.reduce((sum, len) => sum + len, 0);
    this.#off = workshop.alloc(bytes);
    putUdpFrame(workshop.own.dv, this.#off, bytes, stream.plan.peer, stream.plan.own, FLOW);
  }

  turn(): number {
    const workshop = this.#workshop;
    const { segments, len: lens, first } = workshop.burst;
    workshop.clear();
    // All packets are the same bytes, each in as many segments as were asked for.
    for (let i = 0; i < this.#burst; i++) {
      workshop.put(i, this.#off, this.#lens[0]);
      let off = this.#off + this.#lens[0];
      for (let k = 1; k < this.#lens.length; k++) {
        segments.push(workshop.own.id, off, this.#lens[k]);
        off += this.#lens[k];
      }
      lens[i] = off - this.#off;
      first[i + 1] = segments.count;
    }
    return this.#stream.sendAll();
  }
}
