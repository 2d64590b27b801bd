/**
 * The sample program's statistics: what `--stats N` prints every N seconds.
 */
import type { DeviceInfo } from '../control/vhost-switch.ts';
import { type PortCounter, rxDropped, txDropped } from '../stats/counters.ts';

const CLEAR_SCREEN = '\x1b[2J\x1b[1;1H';

/** Columns of a title in the table. */
const TITLE_WIDTH = 54;

/** An uplink by its name; its counters are named as a guest's: what comes in from outside is sent to the switch. */
export interface UplinkStats {
  readonly name: string;
  readonly counters: Record<PortCounter, number>;
}

const row = (label: string, value: number) => `${`${label}:`.padEnd(24)}${value}`;

/** Counters that name a drop and are not zero. */
function drops(counters: Record<PortCounter, number>): string[] {
  return Object.entries(counters)
    .filter(([name, value]) => /_drop_|_fault_|_refused|_failed/.test(name) && value > 0)
    .map(([name, value]) => row(`  ${name}`, value));
}

/** An uplink's lines: what has come in from outside, and what has gone out. */
function uplinkLines({ name, counters }: UplinkStats): string[] {
  const inLost = txDropped(counters);
  const outLost = rxDropped(counters);
  return [
    `Statistics for uplink ${name} `.padEnd(TITLE_WIDTH, '-'),
    row('IN total', counters.tx_packets),
    row('IN dropped', inLost),
    row('IN successful', counters.tx_packets - inLost),
    row('OUT total', counters.rx_packets + outLost),
    row('OUT dropped', outLost),
    row('OUT successful', counters.rx_packets),
    ...drops(counters),
  ];
}

/** The whole table; it clears the screen first where there is one. */
export function statsTable(
  devices: readonly DeviceInfo[],
  screen: boolean,
  uplinks: readonly UplinkStats[] = [],
): string {
  const lines = [`${screen ? CLEAR_SCREEN : ''}Device statistics ====================================`];
  for (const { id, counters } of devices) {
    const txLost = txDropped(counters);
    const rxLost = rxDropped(counters);
    lines.push(
      `Statistics for device ${id} ------------------------------`,
      row('TX total', counters.tx_packets),
      row('TX dropped', txLost),
      row('TX successful', counters.tx_packets - txLost),
      row('RX total', counters.rx_packets + rxLost),
      row('RX dropped', rxLost),
      row('RX successful', counters.rx_packets),
      ...drops(counters),
    );
  }
  lines.push(...uplinks.flatMap(uplinkLines), '======================================================', '');
  return lines.join('\n');
}
