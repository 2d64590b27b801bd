/**
 * net_pcap on the thread that uses it: receives what capture files hold, and writes a capture of what is sent. What it is opened
 * from is in pcap-files.ts.
 */
import type { WindowHandle } from '../mem/window.ts';
import { PORT_SLOTS } from '../stats/counters.ts';
import { MAX_GSO_BYTES } from '../virtio-net/offload-stage.ts';
import { CaptureNews } from './capture-news.ts';
import { CaptureSink, type CaptureSinkSpec } from './capture-sink.ts';
import { CaptureSource, type CaptureSourceSpec, SOURCE_END, SOURCE_FAULT, SOURCE_OPEN } from './capture-source.ts';
import type { DevicePort, DeviceSpec, DeviceTools } from './device-port.ts';
import { countReceived, Sent } from './frame-burst.ts';

/** What an lcore makes its port from. */
export interface PcapSpec extends DeviceSpec {
  readonly window: WindowHandle;
  /** the files of this lcore's receive queues */
  readonly sources: readonly CaptureSourceSpec[];
  /** where this lcore writes what is sent; nothing: it is not taken */
  readonly sink: CaptureSinkSpec | undefined;
  readonly news: SharedArrayBuffer;
}

export class PcapPort implements DevicePort {
  readonly id: number;
  readonly counters: Float64Array;
  readonly queues: number;
  readonly eventFds: readonly number[] = [];
  readonly #tools: DeviceTools;
  readonly #spec: PcapSpec;
  readonly #sources: readonly CaptureSource[];
  readonly #sink: CaptureSink | undefined;
  readonly #sent: Sent;
  readonly #news: CaptureNews;

  constructor(id: number, counters: Float64Array, spec: PcapSpec, tools: DeviceTools) {
    this.id = id;
    this.counters = counters;
    this.#spec = spec;
    this.#tools = tools;
    this.#sources = spec.sources.map((source) => new CaptureSource(source, tools.windows[spec.window.id]));
    this.queues = this.#sources.length;
    this.#sink =
      spec.sink === undefined
        ? undefined
        : new CaptureSink(spec.sink, { burst: tools.ringStage.burst, windows: tools.windows });
    this.#sent = new Sent(counters, tools.ringStage.burst);
    this.#news = new CaptureNews(spec.news);
  }

  get canTransmit(): boolean {
    return this.#sink !== undefined && this.#sink.failed === 0;
  }

  receive(queue: number): number {
    const { burst } = this.#tools.ringStage;
    if (queue >= this.#sources.length) {
      burst.clear();
      return 0;
    }
    const source = this.#sources[queue];
    const before = source.state;
    source.receive(burst);
    if (source.state !== before) this.#tellSource(queue, source);
    return countReceived(this.counters, burst);
  }

  #tellSource(queue: number, { state, reader }: CaptureSource): void {
    const { fd } = this.#spec.sources[queue];
    if (state === SOURCE_END) this.#news.tellEnd();
    else if (state === SOURCE_FAULT) this.#news.tellFault(fd, reader.fault, reader.faultAt, reader.faultFound);
  }

  complete(): void {}

  transmit(list: Int32Array, from: number, to: number): number {
    const sink = this.#sink;
    const { counters } = this;
    if (sink === undefined || sink.failed !== 0) {
      counters[PORT_SLOTS.rx_drop_not_ready] += to - from;
      return 0;
    }
    const { len } = this.#tools.ringStage.burst;
    sink.stamp();
    for (let k = from; k < to; k++) {
      const i = list[k];
      if (len[i] < 0) counters[PORT_SLOTS.rx_drop_bad_offload]++;
      else if (len[i] > MAX_GSO_BYTES) counters[PORT_SLOTS.rx_drop_too_big]++;
      else if (sink.add(i)) this.#sent.add(i);
      else {
        counters[PORT_SLOTS.rx_drop_not_ready] += to - k;
        break;
      }
    }
    sink.settle();
    this.#tellSink();
    return this.#sent.count();
  }

  #tellSink(): void {
    const { sink } = this.#spec;
    if (sink !== undefined && this.#sink !== undefined && this.#sink.failed !== 0)
      this.#news.tellFailed(sink.fd, this.#sink.failed);
  }

  prepareSleep(): boolean {
    this.#sink?.flush();
    this.#tellSink();
    return this.#sources.every((source) => source.idle);
  }

  drain(): void {
    if (this.#sink === undefined) return;
    this.#sink.drain();
    this.#tellSink();
  }

  /** True while some file is not at its end. */
  get receiving(): boolean {
    return this.#sources.some(({ state }) => state === SOURCE_OPEN);
  }

  close(): void {
    this.#sink?.flush();
    this.#tellSink();
  }
}
