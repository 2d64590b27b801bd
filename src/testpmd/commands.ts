/**
 * The prompt's commands, as DPDK's testpmd user guide names them: each row is a way to write one, what it does, and its line of help.
 */
import { SwitchError } from '../errors.ts';
import { boundedText, choice, integer, MAC_ADDRESS, type ValueType } from '../port/text-values.ts';
import { MAX_FRAME_BYTES } from '../virtio-net/burst.ts';
import { FORWARD_MODES } from './engine.ts';
import { Grammar, type Place } from './grammar.ts';
import { MIN_MADE_BYTES } from './modes/txonly.ts';
import { MAX_BURST, type PortChoice, type Session } from './session.ts';
import {
  CSUM_LAYERS,
  FIXED,
  setAllMulticast,
  setBurstOfAll,
  setCoreCount,
  setCores,
  setCsum,
  setFixed,
  setMtu,
  setPortCount,
  setPorts,
  setQueues,
  showCsum,
} from './setup.ts';

/** DPDK's limit of ports, and of a burst. */
export const DPDK_MAX_PORTS = 32;
export const DPDK_MAX_BURST = 512;
const INT32_MAX = 2147483647;
const MAX_UINT16 = 65535;
const MAX_LISTED = 1024;

/** RTE_MAX_SEGS_PER_PKT. */
const MAX_SEGMENTS = 255;
/** Lengths of the segments of a packet. */
export const SEGMENTS: ValueType<number[]> = {
  range: `up to ${MAX_SEGMENTS} lengths in bytes separated by commas, ${MIN_MADE_BYTES} to ${MAX_FRAME_BYTES} together`,
  parse: (text) => {
    const lengths = text.split(',').map((part) => integer(1, MAX_FRAME_BYTES).parse(part));
    const known = lengths.filter((length) => length !== undefined);
    const total = known.reduce((sum, length) => sum + length, 0);
    const fits = lengths.length <= MAX_SEGMENTS && total >= MIN_MADE_BYTES && total <= MAX_FRAME_BYTES;
    return fits && known.length === lengths.length ? known : undefined;
  },
};

/** Numbers separated by commas, in their order. */
const numbers = (noun: string): ValueType<readonly number[]> => ({
  range: `${noun} separated by commas`,
  parse: (text) => {
    const list = text.split(',').map((part) => integer(0, INT32_MAX).parse(part));
    return list.length > MAX_LISTED || list.includes(undefined) ? undefined : (list as number[]);
  },
});

/** A hexadecimal mask, as the numbers of its bits. */
const MASK: ValueType<readonly number[]> = {
  range: 'a hexadecimal mask of 64 bits, not zero',
  parse: (text) => {
    const digits = /^(?:0x)?([\da-f]{1,16})$/i.exec(text)?.[1];
    const mask = digits === undefined ? 0n : BigInt(`0x${digits}`);
    const bits = Array.from({ length: 64 }, (_, bit) => bit).filter((bit) => ((mask >> BigInt(bit)) & 1n) === 1n);
    return bits.length === 0 ? undefined : bits;
  },
};

const words = <T extends string>(...all: readonly T[]): Place<T> => ({ ...choice(...all), words: all });

const PORT = integer(0, DPDK_MAX_PORTS - 1);

const PLACES = {
  port: { ...PORT, range: `a port, ${PORT.range}` },
  ports: {
    range: `a port, ${PORT.range}, or all`,
    parse: (text: string): PortChoice | undefined => (text === 'all' ? text : PORT.parse(text)),
    words: ['all'],
  },
  mode: words(...FORWARD_MODES, 'mac_retry'),
  switch: words('on', 'off'),
  bursts: { ...integer(1, INT32_MAX), range: `a number of bursts, 1..${INT32_MAX}` },
  burst: { ...integer(1, DPDK_MAX_BURST), range: `packets, 1..${DPDK_MAX_BURST}` },
  usec: { ...integer(0, INT32_MAX), range: `µs, 0..${INT32_MAX}` },
  count: { ...integer(0, INT32_MAX), range: `a number, 0..${INT32_MAX}` },
  cores: { ...integer(1, 1024), range: 'a number of cores, from 1' },
  portList: numbers('ports'),
  coreList: numbers('lcores'),
  mask: MASK,
  portCount: { ...integer(1, DPDK_MAX_PORTS), range: `a number of ports, 1..${DPDK_MAX_PORTS}` },
  mtu: { ...integer(0, MAX_UINT16), range: `bytes, 0..${MAX_UINT16}` },
  queues: { ...integer(1, MAX_UINT16), range: `a number of queues, 1..${MAX_UINT16}` },
  level: { ...integer(0, MAX_UINT16), range: `a level, 0..${MAX_UINT16}` },
  layer: words(...CSUM_LAYERS),
  place: words('hw', 'sw'),
  fixed: words(...FIXED),
  segments: SEGMENTS,
  mac: MAC_ADDRESS,
  section: words('control', 'display', 'config', 'ports', 'all'),
  /** what is left to readers: any word */
  word: boundedText('a word', 64),
};

type PlaceName = keyof typeof PLACES;
type ValueIn<Name> = Name extends PlaceName ? ((typeof PLACES)[Name] extends ValueType<infer T> ? T : never) : never;
/** The values of a pattern's places, in order. */
type Values<P extends string> = P extends `${string}(${infer Name})${infer Rest}`
  ? [ValueIn<Name>, ...Values<Rest>]
  : [];

type Section = 'control' | 'display' | 'config' | 'ports';

/** A row of the table. */
export interface Command {
  readonly pattern: string;
  readonly section: Section;
  readonly help: string;
  readonly run: (session: Session, ...values: never[]) => void | Promise<void>;
}

/** Makes a row, so that `run` gets what the pattern's places say. */
function row<P extends string>(
  section: Section,
  pattern: P,
  help: string,
  run: (session: Session, ...values: Values<P>) => void | Promise<void>,
): Command {
  return { pattern, section, help, run: run as Command['run'] };
}

function setMode(session: Session, mode: ValueIn<'mode'>, retry: boolean): void {
  const config = session.config;
  config.mode = mode === 'mac_retry' ? 'mac' : mode;
  config.retry = retry || mode === 'mac_retry';
  session.say(`Set ${config.mode} packet forwarding mode${config.retry ? ' with retry' : ''}`);
}

function setBurst(session: Session, burst: number): void {
  session.config.burst = Math.min(burst, MAX_BURST);
  const capped = burst > MAX_BURST ? ` (of ${burst}: a burst has ${MAX_BURST} at most here)` : '';
  session.say(`Number of packets per burst set to ${session.config.burst}${capped}`);
}

function setTxRetries(session: Session, delay: number, retries: number): void {
  session.config.retryDelay = delay;
  session.config.retryNum = retries;
}

export const COMMANDS: readonly Command[] = [
  row('control', 'start', 'forward packets, as configured', (session) => session.start(0)),
  row('control', 'start tx_first', 'the same, after one burst sent on every port', (session) => session.start(1)),
  row('control', 'start tx_first (bursts)', 'the same, after several bursts', (session, bursts) =>
    session.start(bursts),
  ),
  row('control', 'stop', 'stop forwarding, and show what was done', (session) => session.stop()),
  row('control', 'quit', 'stop, close all ports, and end', (session) => session.quit()),
  row('control', 'help', 'list all commands', (session) => session.say(helpText('all'))),
  row('control', 'help (section)', 'list the commands of a section', (session, section) =>
    session.say(helpText(section)),
  ),
  row('display', 'show port info (ports)', 'what a port is', (session, ports) => session.showPortInfo(ports)),
  row('display', 'show port stats (ports)', "a port's counters, and rates since the last show", (session, ports) =>
    session.showPortStats(ports),
  ),
  row('display', 'show port xstats (ports)', "all of a port's counters, by name", (session, ports) =>
    session.showPortXstats(ports),
  ),
  row('display', 'show port summary (ports)', 'a line for each port', (session, ports) =>
    session.showPortSummary(ports),
  ),
  row('display', 'show fwd stats all', 'what forwarding has done since start', (session) => session.showForwardStats()),
  row('display', 'show config fwd', 'who forwards what to whom', (session) => session.showForwardConfig()),
  row('display', 'show config rxtx', 'bursts and queues', (session) => session.showQueueConfig()),
  row('display', 'show config cores', 'the cores that forward', (session) => session.showCores()),
  row('display', 'show config txpkts', 'the lengths of packets that are made here', (session) =>
    session.showTxPackets(),
  ),
  row('display', 'clear port stats (ports)', "set a port's counters to 0", (session, ports) =>
    session.clearPortStats(ports),
  ),
  row('display', 'clear port xstats (ports)', 'the same', (session, ports) => session.clearPortStats(ports)),
  row('display', 'clear fwd stats all', 'count what forwarding does from 0', (session) => session.clearForwardStats()),
  row('config', 'set fwd (mode)', 'what to do with packets', (session, mode) => setMode(session, mode, false)),
  row('config', 'set fwd (mode) retry', 'the same, and offer again what a full queue did not take', (session, mode) =>
    setMode(session, mode, true),
  ),
  row('config', 'set burst (burst)', 'packets of a burst', setBurst),
  row('config', 'set burst tx delay (usec) retry (count)', 'time between two offers, and how many', setTxRetries),
  row(
    'config',
    'set txpkts (segments)',
    'lengths of the segments of packets that are made here',
    (session, lengths) => {
      session.config.txpkts = lengths;
    },
  ),
  row('config', 'set eth-peer (port) (mac)', 'destination address of what leaves a port', (session, port, mac) =>
    session.setEthPeer(port, mac),
  ),
  row('config', 'set portlist (portList)', 'the ports that forward, in their order', setPorts),
  row('config', 'set portmask (mask)', 'the same by their bits', setPorts),
  row('config', 'set nbport (portCount)', 'forward on the first of them', setPortCount),
  row('config', 'set corelist (coreList)', 'the lcores that forward, in their order', setCores),
  row('config', 'set coremask (mask)', 'the same by their bits', setCores),
  row('config', 'set nbcore (cores)', 'forward with the first of them', setCoreCount),
  row('config', 'set promisc (ports) (switch)', 'receive what is for other stations, or not', (session, ports, on) =>
    session.setPromiscuous(ports, on === 'on'),
  ),
  row('config', 'set allmulti (ports) (switch)', 'receive what is for groups, as ports do', (session, ports, on) =>
    setAllMulticast(session, ports, on === 'on'),
  ),
  row('config', 'set verbose (level)', 'show packets: 1 received ones, 2 sent ones, 3 both, 0 none', (session, level) =>
    session.setVerbose(level),
  ),
  row('config', 'set flush_rx (switch)', 'throw away what waits in receive queues at the start', (session, on) => {
    session.config.flushRx = on === 'on';
  }),
  row('config', 'set record-core-cycles (switch)', 'measure the time that packets take', (session, on) => {
    session.config.recordCycles = on === 'on';
  }),
  row('config', 'set record-burst-stats (switch)', 'count how long bursts are', (session, on) => {
    session.config.recordBursts = on === 'on';
  }),
  row('config', 'csum set (layer) (place) (port)', 'who makes checksums in mode csum', setCsum),
  row('display', 'csum show (port)', 'who makes them', showCsum),
  row('ports', 'port config mtu (port) (mtu)', 'bytes of the longest frame, without Ethernet header and tag', setMtu),
  row('ports', 'port config all rxq (queues)', 'receive queues of each port', (session, n) =>
    setQueues(session, 'rxq', n),
  ),
  row('ports', 'port config all txq (queues)', 'transmit queues', (session, n) => setQueues(session, 'txq', n)),
  row('ports', 'port config all burst (burst)', 'packets of a burst', setBurstOfAll),
  row('ports', 'port config all (fixed) (count)', 'without effect', setFixed),
  row('ports', 'port start (ports)', 'start ports', (session, ports) => session.startPorts(ports)),
  row('ports', 'port stop (ports)', 'stop ports', (session, ports) => session.stopPorts(ports)),
];

const HELP_INDENT = 42;

function helpText(section: ValueIn<'section'>): string {
  const rows = COMMANDS.filter((command) => section === 'all' || command.section === section);
  const lines = rows.map(({ pattern, help }) => `  ${pattern.padEnd(HELP_INDENT)} ${help}`);
  const used = Object.entries<Place<unknown>>(PLACES)
    .filter(([name]) => rows.some(({ pattern }) => pattern.includes(`(${name})`)))
    .map(([name, { range }]) => `  (${name}): ${range}`);
  const note = 'What is set takes effect when forwarding is started the next time.';
  return ['', ...lines, '', ...used, '', note, ''].join('\n');
}

export const GRAMMAR = new Grammar(COMMANDS, PLACES);

/**
 * Does what a line says; says what is wrong with it, or with doing it, prefixed by `where`. An error that is none of this package
 * is thrown on.
 */
export async function runLine(session: Session, line: string, where = ''): Promise<void> {
  const match = GRAMMAR.parse(line);
  if (match === undefined) return;
  if (typeof match === 'string') return session.say(`${where}${match}`);
  try {
    await match.command.run(session, ...(match.values as never[]));
  } catch (error) {
    if (!(error instanceof SwitchError)) throw error;
    session.say(`${where}${error.message}`);
  }
}
