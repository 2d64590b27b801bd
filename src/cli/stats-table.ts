/**
 * The sample program's statistics: what `--stats N` prints every N seconds.
 */
import type { UplinkInfo } from '../control/uplinks.ts';
import type { DeviceInfo, LcoreInfo } from '../control/vhost-switch.ts';
import { type PortCounter, rxDropped, txDropped } from '../stats/counters.ts';

const CLEAR_SCREEN = '\x1b[2J\x1b[1;1H';

const row = (label: string, value: number) => `${`${label}: `.padEnd(24)}${value}`;

/** Counters that name a drop and are not zero. */
function drops(counters: Record<PortCounter, number>): string[] {
  return Object.entries(counters)
    .filter(([name, value]) => /_drop_|_fault_|_refused|_failed|_missed/.test(name) && value > 0)
    .map(([name, value]) => row(`  ${name}`, value));
}

/** What passed without a copy, and what did not; nothing without zero copy. */
const laneRows = (lane: DeviceInfo['lane']): string[] =>
  Object.entries(lane ?? {}).map(([name, value]) => row(`  zero copy ${name}`, value));

const heading = (what: string) => `Statistics for ${what} `.padEnd(54, '-');

/** What goes into the switch at a port, and what comes out of it there: a guest sends the one, an uplink the other. */
function rows(counters: Record<PortCounter, number>, into: string, out: string): string[] {
  const txLost = txDropped(counters);
  const rxLost = rxDropped(counters);
  return [
    row(`${into} total`, counters.tx_packets),
    row(`${into} dropped`, txLost),
    row(`${into} successful`, counters.tx_packets - txLost),
    row(`${out} total`, counters.rx_packets + rxLost),
    row(`${out} dropped`, rxLost),
    row(`${out} successful`, counters.rx_packets),
    ...drops(counters),
  ];
}

/** What an lcore has done with its time. */
function times({ busy_us, idle_us, sleep_us, sleeps }: LcoreInfo['counters']): string[] {
  const ms = (us: number) => Math.round(us / 1000);
  return [
    row('Busy ms', ms(busy_us)),
    row('Idle ms', ms(idle_us)),
    row('Asleep ms', ms(sleep_us)),
    row('Sleeps', sleeps),
  ];
}

/** The whole table; it clears the screen first where there is one. Of uplinks RX is what came from the network. */
export function statsTable(
  devices: readonly DeviceInfo[],
  screen: boolean,
  uplinks: readonly Pick<UplinkInfo, 'name' | 'counters'>[] = [],
  lcores: readonly LcoreInfo[] = [],
): string {
  const lines = [`${screen ? CLEAR_SCREEN : ''}Device statistics ====================================`];
  for (const { id, counters, lane } of devices) {
    lines.push(`Statistics for device ${id} ------------------------------`, ...rows(counters, 'TX', 'RX'));
    lines.push(...laneRows(lane));
  }
  for (const { name, counters } of uplinks) lines.push(heading(`uplink ${name}`), ...rows(counters, 'RX', 'TX'));
  for (const { lcore, counters } of lcores) lines.push(heading(`lcore ${lcore}`), ...times(counters));
  lines.push('======================================================', '');
  return lines.join('\n');
}
