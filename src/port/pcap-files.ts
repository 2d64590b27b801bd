/**
 * net_pcap on the main thread: opens its files, where they may be missing or broken, and tells when they end.
 */
import { closeSync, constants, fstatSync, openSync, statSync } from 'node:fs';
import { ConfigError, SwitchError } from '../errors.ts';
import { CaptureReader, captureBuffer, READ_FAULT, READ_FRAME } from '../net/capture-reader.ts';
import { type CaptureFormat, captureHeader, writeAll } from '../net/capture-writer.ts';
import { CaptureNews, captureNews } from './capture-news.ts';
import type { CaptureSinkSpec } from './capture-sink.ts';
import type { CaptureSourceSpec } from './capture-source.ts';
import type { DeviceOpening, LinkState, OpenedDevice } from './device-port.ts';
import type { PcapSpec } from './pcap-port.ts';
import { localMac, PortWindow } from './port-window.ts';
import type { VdevOf } from './vdev.ts';

/** Buffer of each file, bytes: what is read, or written, in one piece. */
const BUFFER_BYTES = 2 ** 20;

/** What to replay, and where to record. */
export interface PcapOptions {
  /** as given to --vdev */
  readonly name: string;
  /** a receive queue for each file */
  readonly rxFiles: readonly string[];
  /** what is sent goes to the first; with several, that of lcore n goes to file n modulo their number */
  readonly txFiles: readonly string[];
  /** begin anew at the end of a file */
  readonly infinite: boolean;
  /** keep the distances between the frames' times; default: as fast as they are asked for */
  readonly gaps?: boolean;
  /** default: pcapng for names that end so, else pcap; both with nanoseconds */
  readonly format?: CaptureFormat;
}

/** Opens `net_pcap…` with files. Throws ConfigError, SwitchError (BAD_CAPTURE, CAPTURE_FILE); nothing is left open then. */
export function openPcap(vdev: VdevOf<'net_pcap'>, opening: DeviceOpening): OpenedDevice<PcapSpec> {
  const { rx_pcap, tx_pcap, infinite_rx } = vdev.values;
  if (rx_pcap.length + tx_pcap.length === 0) {
    const problem = 'needs rx_pcap=FILE, tx_pcap=FILE, or both; or iface=INTERFACE';
    throw new ConfigError('CONFIG_MISSING_VALUE', '--vdev', problem, { value: vdev.name });
  }
  return openCaptures({ name: vdev.name, rxFiles: rx_pcap, txFiles: tx_pcap, infinite: infinite_rx }, opening);
}

/** Opens files to replay and to record, as a port. Throws as `openPcap` does. */
export function openCaptures(options: PcapOptions, opening: DeviceOpening): OpenedDevice<PcapSpec> {
  const opened = new OpenedPcap(options, opening);
  try {
    opened.open();
    return opened;
  } catch (error) {
    opened.closeAll();
    throw error;
  }
}

/** A file, once it is open. */
interface OpenFile {
  readonly path: string;
  readonly fd: number;
}

class OpenedPcap implements OpenedDevice<PcapSpec> {
  readonly name: string;
  readonly mac: Uint8Array;
  readonly mtu = 9710;
  readonly #options: PcapOptions;
  readonly #opening: DeviceOpening;
  readonly #rx: OpenFile[] = [];
  readonly #tx: OpenFile[] = [];
  readonly #shared = captureNews();
  readonly #news = new CaptureNews(this.#shared);
  #window: PortWindow | undefined;

  constructor(options: PcapOptions, opening: DeviceOpening) {
    this.name = options.name;
    this.mac = localMac(options.name, 'pcap');
    this.#options = options;
    this.#opening = opening;
  }

  open(): void {
    const { rxFiles, txFiles } = this.#options;
    for (const path of rxFiles) this.#openToRead(path);
    // looked at first: opening a file to write empties it
    for (const path of txFiles) this.#checkApart(path);
    for (const path of txFiles) this.#openToWrite(path);
    this.#window = new PortWindow(this.#opening, BUFFER_BYTES, rxFiles.length + this.#opening.lcores);
  }

  /** Opens a file, and sees whether it has a frame, so that most that can be wrong is told at once. */
  #openToRead(path: string): void {
    const fd = this.#openFile(path, 'rx_pcap', constants.O_RDONLY | constants.O_NONBLOCK);
    this.#rx.push({ path, fd });
    if (!fstatSync(fd).isFile()) throw this.#fileFault(path, 'rx_pcap', 'is no regular file');
    const reader = new CaptureReader(fd, captureBuffer());
    const said = reader.nextFilled();
    if (said === READ_FAULT) throw new SwitchError('BAD_CAPTURE', `${this.name}: rx_pcap=${reader.describe(path)}`);
    if (said !== READ_FRAME && this.#options.infinite)
      throw this.#fileFault(path, 'rx_pcap', 'holds no frame that could be repeated');
  }

  #checkApart(path: string): void {
    const found = statSync(path, { throwIfNoEntry: false });
    if (found === undefined) return;
    for (const { path: rxPath, fd } of this.#rx) {
      const { dev, ino } = fstatSync(fd);
      if (dev === found.dev && ino === found.ino) {
        const problem = `rx_pcap=${rxPath} and tx_pcap=${path} are one file, which would be lost; give two`;
        throw new ConfigError('CONFIG_CONFLICT', '--vdev', problem, { value: this.name });
      }
    }
  }

  #openToWrite(path: string): void {
    const { O_WRONLY, O_CREAT, O_TRUNC, O_APPEND } = constants;
    const fd = this.#openFile(path, 'tx_pcap', O_WRONLY | O_CREAT | O_TRUNC | O_APPEND);
    this.#tx.push({ path, fd });
    try {
      writeAll(fd, captureHeader(this.#formatOf(path), this.name));
    } catch (error) {
      throw this.#fileFault(path, 'tx_pcap', (error as Error).message);
    }
  }

  #formatOf(path: string): CaptureFormat {
    return this.#options.format ?? (path.endsWith('.pcapng') ? 'pcapng' : 'pcap');
  }

  #openFile(path: string, key: string, flags: number): number {
    try {
      return openSync(path, flags, 0o666);
    } catch (error) {
      throw this.#fileFault(path, key, `cannot be opened: ${(error as Error).message}`);
    }
  }

  #fileFault(path: string, key: string, problem: string): SwitchError {
    return new SwitchError('CAPTURE_FILE', `${this.name}: ${key}=${path}: ${problem}`);
  }

  /** Up while frames come or go. */
  get link(): LinkState {
    const pathOf = (fd: number) => [...this.#rx, ...this.#tx].find((file) => file.fd === fd)?.path ?? '';
    const problem = this.#news.problem(pathOf);
    if (problem !== undefined) return { up: false, speed: 0, gone: problem };
    const ended = this.#rx.length > 0 && this.#news.ends === this.#rx.length;
    if (!ended || this.#tx.length > 0) return { up: true, speed: 10_000 };
    const paths = this.#rx.map(({ path }) => path);
    return { up: false, speed: 0, gone: `${paths.join(', ')}: all frames have been received` };
  }

  onLink(told: (link: LinkState) => void): void {
    this.#news.watch(() => told(this.link));
  }

  /** Receive queue q belongs to lcore q modulo their number. */
  spec(lcore: number, lcores: number): PcapSpec {
    const { infinite, gaps = false } = this.#options;
    const window = this.#window as PortWindow;
    const { handle } = window;
    const sources: CaptureSourceSpec[] = [];
    for (let queue = lcore; queue < this.#rx.length; queue += lcores)
      sources.push({ ...this.#rx[queue], off: window.off(queue), bytes: BUFFER_BYTES, infinite, gaps });
    let sink: CaptureSinkSpec | undefined;
    if (this.#tx.length > 0) {
      const file = this.#tx[lcore % this.#tx.length];
      const off = window.off(this.#rx.length + lcore);
      sink = { ...file, format: this.#formatOf(file.path), window: handle, off, bytes: BUFFER_BYTES };
    }
    return { windows: [handle], window: handle, sources, sink, news: this.#shared };
  }

  closeAll(): void {
    this.#news.close();
    for (const { fd } of [...this.#rx, ...this.#tx]) closeSync(fd);
    this.#window?.close();
  }

  async close(): Promise<void> {
    this.closeAll();
  }
}
