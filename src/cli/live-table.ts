/**
 * The live table: what each device sends and gets now, from two looks at its counters.
 */
import type { DeviceInfo } from '../control/vhost-switch.ts';
import { rxDropped, txDropped } from '../stats/counters.ts';

/** Ethernet's preamble, frame check and gap, bytes: what a frame takes on a wire beyond its own. */
const WIRE_OVERHEAD = 24;

const HEADINGS = ['device', 'MAC address', 'TX Mpps', 'TX Gbit/s', 'RX Mpps', 'RX Gbit/s', 'TX drops', 'RX drops'];
const WIDTHS = [6, 17, 9, 9, 9, 9, 12, 12];

const line = (cells: readonly string[]) => cells.map((cell, i) => cell.padStart(WIDTHS[i])).join('  ');

/** Compares each look with the one before. */
export class LiveTable {
  #before = new Map<number, DeviceInfo>();
  #at = performance.now();

  /** The table's lines since the last call; rates are averages over that time. */
  lines(devices: readonly DeviceInfo[]): string[] {
    const now = performance.now();
    const seconds = (now - this.#at) / 1000;
    const rows = devices.map((device) => this.#row(device, seconds));
    this.#before = new Map(devices.map((device) => [device.id, device]));
    this.#at = now;
    return [line(HEADINGS), ...rows];
  }

  #row(device: DeviceInfo, seconds: number): string {
    const { id, mac, counters } = device;
    const before = this.#before.get(id)?.counters;
    const since = (name: keyof typeof counters) => counters[name] - (before?.[name] ?? 0);
    const rates = (['tx', 'rx'] as const).flatMap((way) => {
      const packets = since(`${way}_packets`);
      const bits = 8 * (since(`${way}_bytes`) + WIRE_OVERHEAD * packets);
      return [(packets / seconds / 1e6).toFixed(3), (bits / seconds / 1e9).toFixed(3)];
    });
    return line([String(id), mac ?? '-', ...rates, String(txDropped(counters)), String(rxDropped(counters))]);
  }
}

/** Prints tables: in place on a terminal, one below the other elsewhere. Other lines may come in between. */
export class LivePrinter {
  readonly #out: NodeJS.WriteStream;
  #height = 0;

  constructor(out: NodeJS.WriteStream) {
    this.#out = out;
  }

  print(lines: readonly string[]): void {
    const up = this.#out.isTTY && this.#height > 0 ? `\x1b[${this.#height}A\x1b[J` : '';
    this.#out.write(`${up}${lines.join('\n')}\n`);
    this.#height = lines.length;
  }

  /** A line that stays: the next table goes below it. */
  say(text: string): void {
    this.#out.write(`${text}\n`);
    this.#height = 0;
  }
}
