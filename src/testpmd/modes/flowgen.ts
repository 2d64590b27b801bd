/**
 * flowgen: sends UDP datagrams of many flows, which differ in where they go, and throws away what arrives.
 */
import type { Stream } from '../stream.ts';
import type { Workshop } from '../workshop.ts';
import type { Mode, ModeSettings } from './mode.ts';
import { putUdpFrame } from './udp-frame.ts';

const SOURCE = 0x0afe0000;
const FIRST_DEST = 0x0afd0000;
const SOURCE_PORT = 1000;
const DEST_PORT = 1001;
const SOURCE_MAC = Uint8Array.of(0, 1, 2, 3, 4, 0);
const DEST_MAC = Uint8Array.of(0, 1, 2, 3, 4, 1);
/** Frames of this length are kept for all flows; of longer ones only the headers are there once for each flow. */
const HEAD_BYTES = 64;

export class FlowGenMode implements Mode {
  readonly #stream: Stream;
  readonly #workshop: Workshop;
  readonly #burst: number;
  readonly #bytes: number;
  readonly #head: number;
  /** the headers of flow n lie n times HEAD_BYTES from here on; what follows in a frame is the same for all */
  readonly #headsOff: number;
  readonly #restOff: number;
  readonly #flows: number;
  /** how often a packet is there in a row */
  readonly #copies: number;
  #next = 0;

  constructor(stream: Stream, workshop: Workshop, { burst, txpkts, made }: ModeSettings) {
    this.#stream = stream;
    this.#workshop = workshop;
    this.#burst = burst;
    this.#bytes = txpkts.reduce((sum, len) => sum + len, 0);
    this.#head = Math.min(this.#bytes, HEAD_BYTES);
    this.#flows = made.flows;
    this.#copies = made.clones + 1;
    this.#headsOff = workshop.allocMuch(made.flows * HEAD_BYTES);
    this.#restOff = workshop.alloc(this.#bytes);
    const { dv, u8 } = workshop.own;
    u8.fill(0, this.#headsOff, this.#headsOff + made.flows * HEAD_BYTES);
    for (let flow = 0; flow < made.flows; flow++)
      putUdpFrame(dv, this.#headsOff + flow * HEAD_BYTES, this.#bytes, DEST_MAC, SOURCE_MAC, {
        source: SOURCE,
        dest: (FIRST_DEST + flow) >>> 0,
        sourcePort: SOURCE_PORT,
        destPort: DEST_PORT,
      });
  }

  turn(): number {
    const stream = this.#stream;
    const received = stream.receive();
    if (received > 0) stream.complete();
    const workshop = this.#workshop;
    const { segments, len, first } = workshop.burst;
    const flows = this.#flows;
    workshop.clear();
    let flow = this.#next;
    let left = 0;
    for (let i = 0; i < this.#burst; i++) {
      if (left === 0) {
        left = this.#copies;
        flow = (this.#next + i) % flows;
      }
      left--;
      workshop.put(i, this.#headsOff + flow * HEAD_BYTES, this.#head);
      if (this.#bytes > this.#head) segments.push(workshop.own.id, this.#restOff, this.#bytes - this.#head);
      len[i] = this.#bytes;
      first[i + 1] = segments.count;
    }
    // what was not taken is made again
    const sent = stream.sendAll();
    this.#next = (this.#next + sent) % flows;
    return received + sent;
  }
}
