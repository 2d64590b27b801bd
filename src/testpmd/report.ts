/**
 * What the prompt shows, laid out as DPDK's testpmd lays it out, line by line and column by column: people's scripts read it.
 * Figures that mean nothing here are left out, as whole lines.
 */
import { kindOfVdev } from '../port/vdev.ts';
import { DEFAULT_MADE, type ForwardConfig, type PortInfo, type PortStats } from './engine.ts';
import type { Forwarded, PortForwarded } from './forward-stats.ts';
import type { StreamPlace } from './topology.ts';

const left = (n: number, width: number) => String(n).padEnd(width);
const right = (n: number, width: number) => String(n).padStart(width);
/** A title in the middle of a line of `mark`s. */
const border = (mark: string, count: number, title: string) => `  ${mark.repeat(count)} ${title}${mark.repeat(count)}`;

/** A link's speed, from Mbit/s. */
function speedText(mbps: number): string {
  if (mbps === 0) return 'Unknown';
  return mbps < 1000 ? `${mbps} Mbps` : `${mbps / 1000} Gbps`;
}

const macText = (mac: string) => mac.toUpperCase();

/** What a port has moved each second since it was shown before. */
export interface Rates {
  readonly rxPps: number;
  readonly rxBps: number;
  readonly txPps: number;
  readonly txBps: number;
}

/** `show port stats`, one port. Begins with an empty line. */
export function nicStatistics(port: number, stats: PortStats, rates: Rates): string {
  return `
${border('#', 24, `NIC statistics for port ${left(port, 2)} `)}
  RX-packets: ${left(stats.rxPackets, 10)} RX-missed: ${left(stats.rxMissed, 10)} RX-bytes:  ${stats.rxBytes}
  RX-errors: ${stats.rxErrors}
  RX-nombuf:  ${left(stats.rxNoMbuf, 10)}
  TX-packets: ${left(stats.txPackets, 10)} TX-errors: ${left(stats.txErrors, 10)} TX-bytes:  ${stats.txBytes}

  Throughput (since last show)
  Rx-pps: ${right(rates.rxPps, 12)}          Rx-bps: ${right(rates.rxBps, 12)}
  Tx-pps: ${right(rates.txPps, 12)}          Tx-bps: ${right(rates.txBps, 12)}
  ${'#'.repeat(76)}`;
}

/** `show port xstats`, one port. */
export function extendedStatistics(port: number, xstats: ReadonlyMap<string, number>): string {
  const lines = [...xstats].map(([name, value]) => `${name}: ${value}`);
  return [`###### NIC extended statistics for port ${left(port, 2)}`, ...lines].join('\n');
}

/** `show port info`, one port. Begins with an empty line. */
export function portInfo(info: PortInfo): string {
  const { port, up, reason } = info;
  return `
${'*'.repeat(21)} Infos for port ${left(port, 2)} ${'*'.repeat(21)}
MAC address: ${macText(info.mac)}
Device name: ${info.name}
Driver name: ${kindOfVdev(info.name)}
Link status: ${up || reason === '' ? linkText(up) : `down (${reason})`}
Link speed: ${speedText(info.speed)}
Link duplex: full-duplex
MTU: ${info.mtu}
Promiscuous mode: ${info.promiscuous ? 'enabled' : 'disabled'}
Port status: ${info.started ? 'started' : 'stopped'}
Current number of RX queues: ${info.rxQueues}
Current number of TX queues: ${info.txQueues}
Number of RXDs per queue: ${info.descriptors}
Number of TXDs per queue: ${info.descriptors}`;
}

const linkText = (up: boolean) => (up ? 'up' : 'down');

/** `show port summary`. `available` is how many ports there are, shown or not. */
export function portSummary(infos: readonly PortInfo[], available: number): string {
  const rows = infos.map(({ port, mac, name, up, speed }) => {
    const link = linkText(up).padEnd(8);
    return `${left(port, 4)} ${macText(mac)} ${name.padEnd(12)} ${kindOfVdev(name).padEnd(14)} ${link} ${speedText(speed)}`;
  });
  const head = 'Port MAC Address       Name         Driver         Status   Link';
  return [`Number of available ports: ${available}`, head, ...rows].join('\n');
}

/** The line when a port's link goes up or down, and why. */
export function linkChange({ port, up, speed, reason }: PortInfo): string {
  const why = up ? `up at ${speedText(speed)}` : `down${reason === '' ? '' : `: ${reason}`}`;
  return `Port ${port}: link state change event: ${why}`;
}

/** Received, sent, and what was lost on the way: the two lines that all blocks have. */
const receivedLine = (packets: number, dropped: number) =>
  `  RX-packets: ${left(packets, 14)} RX-dropped: ${left(dropped, 14)}RX-total: ${packets + dropped}`;
const sentLine = (packets: number, dropped: number) =>
  `  TX-packets: ${left(packets, 14)} TX-dropped: ${left(dropped, 14)}TX-total: ${packets + dropped}`;

/** What `forwardStatistics` shows beside packets, and what they are called after. */
export type Shown = Pick<ForwardConfig, 'mode' | 'recordBursts' | 'recordCycles'>;

/** `show fwd stats`, and what `stop` says. Begins with an empty line. */
export function forwardStatistics({ ports, streams }: Forwarded, shown: Shown): string {
  const checksums = shown.mode === 'csum';
  const total = (count: (row: PortForwarded) => number) => ports.reduce((sum, row) => sum + count(row), 0);
  const noMbuf = total((row) => row.rxNoMbuf);
  const blocks = [
    ...(streams.length > ports.length ? streamBlocks(streams, checksums) : []),
    ...ports.map((row) => portBlock(row, shown)),
    `\n${border('+', 15, 'Accumulated forward statistics for all ports')}`,
    receivedLine(
      total((row) => row.rxPackets),
      total((row) => row.rxDropped),
    ),
    sentLine(
      total((row) => row.txPackets),
      total((row) => row.txDropped),
    ),
    ...(noMbuf > 0 ? [`  RX-nombufs: ${left(noMbuf, 14)}`] : []),
    `  ${'+'.repeat(76)}`,
    ...(shown.recordCycles === true ? cycles(streams, shown) : []),
  ];
  return blocks.join('\n');
}

/** Here a cycle is a nanosecond: the time is taken from the clock. */
const CLOCK_MHZ = 1000;

function cycles(streams: Forwarded['streams'], { mode }: Shown): string[] {
  const sends = mode === 'txonly' || mode === 'flowgen';
  const packets = streams.reduce((sum, { rxPackets, txPackets }) => sum + (sends ? txPackets : rxPackets), 0);
  if (packets === 0) return [];
  const total = streams.reduce((sum, { busyNs }) => sum + Math.round(busyNs), 0);
  const counts = `total cycles=${total} / total ${mode} packets=${packets}`;
  return [`\n  CPU cycles/packet=${(total / packets).toFixed(2)} (${counts}) at ${CLOCK_MHZ} MHz Clock`];
}

/** How long bursts were: empty ones, the two lengths that there were most of, and all others. Nothing where there were none. */
function burstLine(way: 'RX' | 'TX', bursts: readonly number[]): string[] {
  const total = bursts.reduce((sum, count) => sum + count, 0);
  if (total === 0) return [];
  const byCount = bursts.map((count, packets) => ({ count, packets })).slice(1);
  const shown = [{ count: bursts[0], packets: 0 }, ...byCount.toSorted((a, b) => b.count - a.count).slice(0, 2)];
  const parts: string[] = [];
  let [seen, percents] = [0, 0];
  for (const { count, packets } of shown) {
    seen += count;
    if (seen === total) {
      parts.push(`${100 - percents}% of ${packets} pkts`);
      break;
    }
    const percent = Math.floor((100 * count) / total);
    percents += percent;
    parts.push(`${percent}% of ${packets} pkts`);
  }
  if (seen < total) parts.push(`${100 - percents}% of other`);
  return [`  ${way}-bursts : ${total} [${parts.join(' + ')}]`];
}

function portBlock(row: PortForwarded, { mode, recordBursts = false }: Shown): string {
  const checksums = mode === 'csum';
  const title = `Forward statistics for port ${left(row.port, 2)} `;
  const lines = [
    `\n${border('-', 22, title)}`,
    receivedLine(row.rxPackets, row.rxDropped),
    ...(checksums ? [`  Bad-ipcsum: ${left(row.badIpChecksum, 14)} Bad-l4csum: ${left(row.badL4Checksum, 14)}`] : []),
    ...(row.rxErrors + row.rxNoMbuf > 0
      ? [`  RX-error: ${row.rxErrors}`, `  RX-nombufs: ${left(row.rxNoMbuf, 14)}`]
      : []),
    sentLine(row.txPackets, row.txDropped),
    ...(row.txRetries > 0 ? [`  TX-retries: ${row.txRetries}`] : []),
    ...(recordBursts ? [...burstLine('RX', row.rxBursts), ...burstLine('TX', row.txBursts)] : []),
    `  ${'-'.repeat(76)}`,
  ];
  return lines.join('\n');
}

/** A block for each stream that has done something. */
function streamBlocks(streams: Forwarded['streams'], checksums: boolean): string[] {
  return streams
    .filter(({ rxPackets, txPackets, txDropped }) => rxPackets + txPackets + txDropped > 0)
    .map((stream) => {
      const from = `RX Port=${right(stream.rxPort, 2)}/Queue=${right(stream.rxQueue, 2)}`;
      const to = `TX Port=${right(stream.txPort, 2)}/Queue=${right(stream.txQueue, 2)}`;
      const [rx, tx] = [left(stream.rxPackets, 14), left(stream.txPackets, 14)];
      const bad = `  RX- bad IP checksum: ${left(stream.badIpChecksum, 14)}  Rx- bad L4 checksum: ${left(stream.badL4Checksum, 14)}`;
      return `
  ------- Forward Stats for ${from} -> ${to} -------
  RX-packets: ${rx} TX-packets: ${tx} TX-dropped: ${left(stream.txDropped, 14)}${checksums ? bad : ''}`;
    });
}

/** What is forwarded how, and by whom. */
export interface ForwardPlan {
  readonly config: ForwardConfig;
  /** the ports that take part, in their order */
  readonly ports: readonly number[];
  /** the lcores that forward, and the streams of each */
  readonly lcores: readonly { readonly lcore: number; readonly streams: readonly StreamPlace[] }[];
}

const modeText = ({ mode, retry }: ForwardConfig) => `${mode} packet forwarding${retry ? ' with retry' : ''}`;

/** DPDK's address for the peer of a port that nobody has told: locally administered. */
export const defaultPeer = (port: number) => `02:00:00:00:00:${port.toString(16).padStart(2, '0')}`;

/** `show config fwd`. Ends with an empty line. */
export function forwardConfig({ config, ports, lcores }: ForwardPlan): string {
  const streams = lcores.reduce((sum, one) => sum + one.streams.length, 0);
  const counts = `ports=${ports.length} - cores=${lcores.length} - streams=${streams}`;
  const retry = `TX retry num: ${config.retryNum}, delay between TX retries: ${config.retryDelay}us`;
  const lines = lcores.flatMap(({ lcore, streams: share }) => [
    `Logical Core ${lcore} (socket 0) forwards packets on ${share.length} streams:`,
    ...share.map(({ rxPort, txPort, queue }) => {
      const peer = macText(config.ethPeers.get(txPort) ?? defaultPeer(txPort));
      return `  RX P=${rxPort}/Q=${queue} (socket 0) -> TX P=${txPort}/Q=${queue} (socket 0) peer=${peer}`;
    }),
  ]);
  const head = `${modeText(config)} - ${counts} - NUMA support disabled, MP allocation mode: native`;
  return [head, ...(config.retry ? [retry] : []), ...lines, ''].join('\n');
}

/** `show config rxtx`: bursts and queues. */
export function queueConfig({ config, ports, lcores }: ForwardPlan, infos: readonly PortInfo[]): string {
  const { mode, burst, txpkts } = config;
  const bytes = txpkts.reduce((sum, length) => sum + length, 0);
  const makesPackets = mode === 'txonly' || mode === 'flowgen';
  const lines = infos
    .filter(({ port }) => ports.includes(port))
    .flatMap(({ port, rxQueues, txQueues, descriptors }) => [
      `  port ${port}: RX queue number: ${rxQueues} Tx queue number: ${txQueues}`,
      ...['RX', 'TX'].flatMap((way) => [`    ${way} queue: 0`, `      ${way} desc=${descriptors}`]),
    ]);
  const flows = ports.map((port) => `  number of flows for port ${port}: ${(config.made ?? DEFAULT_MADE).flows}`);
  return [
    ...(mode === 'flowgen' && config.traffic?.plan === undefined ? flows : []),
    `  ${modeText(config)} packets/burst=${burst}`,
    ...(makesPackets ? [`  packet len=${bytes} - nb packet segments=${txpkts.length}`] : []),
    `  nb forwarding cores=${lcores.length} - nb forwarding ports=${ports.length}`,
    ...lines,
  ].join('\n');
}
