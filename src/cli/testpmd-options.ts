/**
 * The command line of vhost-testpmd: the options of DPDK's testpmd, with their names, ranges and defaults, resolved to plain values.
 * Nothing here touches files, sockets or CPUs.
 */
import { ConfigError } from '../errors.ts';
import { MAC_ADDRESS } from '../port/text-values.ts';
import { parseVdevs, type Vdev } from '../port/vdev.ts';
import { DPDK_MAX_BURST, DPDK_MAX_PORTS, SEGMENTS } from '../testpmd/commands.ts';
import {
  DEFAULT_MADE,
  FORWARD_MODES,
  type ForwardConfig,
  type MadeConfig,
  type NoisyConfig,
} from '../testpmd/engine.ts';
import { MAX_BURST } from '../testpmd/session.ts';
import type { Topology } from '../testpmd/topology.ts';
import { MAX_FLOWS } from '../testpmd/traffic/payload.ts';
import { EAL, EAL_IGNORED, type EalSettings, type LcoreCpus, MAX_LCORES, resolveEal } from './eal.ts';
import {
  allValues,
  choice,
  FLAG,
  fold,
  formatHelp,
  type Given,
  givenValue,
  hexMask,
  integer,
  notesOn,
  type Option,
  optionName,
  refuseLater,
  spell,
  TEXT,
  type ValueType,
  valueOrDefault,
} from './options.ts';
import { TESTPMD_IGNORED } from './testpmd-ignored.ts';
import { ipNumber, resolveTraffic, TRAFFIC } from './traffic-options.ts';
import { takeApart } from './two-sides.ts';

/** Everything a command line says. With `help` or `version` the other values are the defaults. */
export interface TestpmdCommandLine extends Pick<EalSettings, 'cores' | 'ignored' | 'notes'> {
  readonly help: boolean;
  readonly version: boolean;
  /** Print the version at start. */
  readonly showVersion: boolean;
  /** The ports, in order of their numbers; at least one but with `help` or `version`. */
  readonly vdevs: readonly Vdev[];
  readonly interactive: boolean;
  readonly autoStart: boolean;
  /** bursts to send before forwarding */
  readonly txFirst: number;
  /** seconds between two statistics; 0 = none */
  readonly statsPeriod: number;
  /** file of commands to do first */
  readonly cmdlineFile?: string;
  readonly topology: Topology;
  readonly forward: ForwardConfig;
  /** file of the addresses of the peers of ports 0, 1, …; those of `forward` come before it */
  readonly ethPeersFile?: string;
}

const INT32_MAX = 2147483647;
/** What a timer counting milliseconds in 31 bits holds. */
const MAX_TIMER_SECONDS = 2147483;
const MAX_QUEUES = 65535;
const MAX_PORT = 65535;
/** DPDK's least. */
const MIN_MAX_PKT_LEN = 65;
/** What each stream of the mode noisy has of its own: packets, and MiB. */
const MAX_NOISY_BUFFER = 16384;
const MAX_NOISY_MIB = 1024;
/** DPDK's time between two offers of what a full queue did not take, µs, and their number. */
const RETRY_DELAY = 1;
const RETRIES = 64;

const PORT_LIST: ValueType<readonly number[]> = {
  range: `ports and ranges of ports below ${DPDK_MAX_PORTS}, each once, for example 0,2-3`,
  parse: (text) => {
    const ports = text.split(',').flatMap((part) => {
      const range = /^(\d+)(?:-(\d+))?$/.exec(part);
      const [from, to] = [Number(range?.[1]), Number(range?.[2] ?? range?.[1])];
      if (!(from <= to && to < DPDK_MAX_PORTS)) return [-1];
      return Array.from({ length: to - from + 1 }, (_, i) => from + i);
    });
    return ports.includes(-1) || new Set(ports).size < ports.length ? undefined : ports;
  },
};

interface EthPeer {
  readonly port: number;
  readonly mac: string;
}

const ETH_PEER: ValueType<EthPeer> = {
  range: `PORT,ADDRESS, a port below ${DPDK_MAX_PORTS} and ${MAC_ADDRESS.range}`,
  parse: (text) => {
    const [, portText = '', macText = ''] = /^(\d+),(.*)$/.exec(text) ?? [];
    const port = integer(0, DPDK_MAX_PORTS - 1).parse(portText);
    const mac = MAC_ADDRESS.parse(macText);
    return port === undefined || mac === undefined ? undefined : { port, mac };
  },
};

/** Two addresses, as 32-bit numbers. */
const TX_IP: ValueType<readonly [source: number, dest: number]> = {
  range: 'SOURCE,DESTINATION, two IPv4 addresses',
  parse: (text) => {
    const [source, dest, ...more] = text.split(',').map(ipNumber);
    return source === undefined || dest === undefined || more.length > 0 ? undefined : [source, dest];
  },
};

const TX_UDP: ValueType<readonly [source: number, dest: number]> = {
  range: `SOURCE[,DESTINATION], UDP ports, 0..${MAX_PORT}; left out: the same`,
  parse: (text) => {
    const ports = text.split(',').map((part) => integer(0, MAX_PORT).parse(part));
    const [source, dest = source] = ports;
    return source === undefined || dest === undefined || ports.includes(undefined) || ports.length > 2
      ? undefined
      : [source, dest];
  },
};

const OWN_FRAMES = 'no effect: a port takes frames as long as its MTU lets them be, which "show port info" tells';
const NO_MBUFS = 'no effect: packets stay where they are, there are no mbufs';
const OWN_RINGS = 'no effect: rings are as long as the device says, for net_virtio_user by its key queue_size';

/** An option of the mode `noisy`. */
function noisy(name: string, value: string, max: number, help: string) {
  return { long: `noisy-${name}`, value, type: integer(0, max), default: '0', help };
}

/** The EAL options that mean something here. */
const TESTPMD_EAL = {
  ...EAL,
  vdev: {
    long: 'vdev',
    value: 'NAME[,KEY=VALUE]',
    type: TEXT,
    repeats: true,
    help: 'device to use as the next port, for example net_virtio_user0,path=/tmp/sock',
  },
  allow: {
    ...EAL.allow,
    help: 'PCI device',
    later: 'PCI devices are not driven from here; leave -a out, and name the ports by --vdev',
  },
} satisfies Record<string, Option>;

/** The options of testpmd that mean something here, in the order of the help. */
const TESTPMD = {
  interactive: { short: 'i', long: 'interactive', type: FLAG, help: 'with a prompt' },
  cmdlineFile: { long: 'cmdline-file', value: 'PATH', type: TEXT, help: 'file of commands to do first' },
  autoStart: { short: 'a', long: 'auto-start', type: FLAG, help: 'forward before the prompt comes' },
  txFirst: { long: 'tx-first', type: FLAG, help: 'send a burst on every port before forwarding' },
  statsPeriod: {
    long: 'stats-period',
    value: 'SECONDS',
    type: integer(0, MAX_TIMER_SECONDS),
    default: '0',
    help: 'without a prompt, show statistics at this interval; 0 = never',
  },
  forwardMode: {
    long: 'forward-mode',
    value: 'MODE',
    type: choice(...FORWARD_MODES),
    default: 'io',
    help: 'what to do with packets',
  },
  topology: {
    long: 'port-topology',
    value: 'HOW',
    type: choice<Topology>('paired', 'chained', 'loop'),
    default: 'paired',
    help: 'which port sends what a port receives',
  },
  portMask: { long: 'portmask', value: 'PORTMASK', type: hexMask(DPDK_MAX_PORTS), help: 'ports that forward' },
  portList: { long: 'portlist', value: 'PORTS', type: PORT_LIST, help: 'the same as a list, in its order' },
  nbPorts: { long: 'nb-ports', value: 'COUNT', type: integer(1, DPDK_MAX_PORTS), help: 'forward on the first ports' },
  coreMask: { long: 'coremask', value: 'COREMASK', type: hexMask(MAX_LCORES), help: 'lcores that forward' },
  nbCores: { long: 'nb-cores', value: 'COUNT', type: integer(1, 1024), default: '1', help: 'cores that forward' },
  burst: {
    long: 'burst',
    value: 'PACKETS',
    type: integer(1, DPDK_MAX_BURST),
    default: '32',
    help: `packets of a burst; above ${MAX_BURST} it is ${MAX_BURST}`,
  },
  txpkts: {
    long: 'txpkts',
    value: 'LENGTHS',
    type: SEGMENTS,
    default: '64',
    help: 'lengths of the segments of packets that are made here',
  },
  txIp: { long: 'tx-ip', value: 'SOURCE,DESTINATION', type: TX_IP, help: 'txonly: IPv4 addresses of packets' },
  txUdp: { long: 'tx-udp', value: 'SOURCE[,DEST]', type: TX_UDP, help: 'txonly: UDP ports of packets' },
  txMultiFlow: { long: 'txonly-multi-flow', type: FLAG, help: 'txonly: packets of 256 sources, in turn' },
  flowgenFlows: {
    long: 'flowgen-flows',
    value: 'COUNT',
    type: integer(1, MAX_FLOWS),
    default: `${DEFAULT_MADE.flows}`,
    help: 'flowgen: flows that are made',
  },
  flowgenClones: {
    long: 'flowgen-clones',
    value: 'COUNT',
    type: integer(0, DPDK_MAX_BURST),
    default: '0',
    help: 'flowgen: how often a packet is repeated, less than a burst',
  },
  ethPeersFile: {
    long: 'eth-peers-configfile',
    value: 'PATH',
    type: TEXT,
    help: 'file of such addresses, one a line, of ports 0, 1, …',
  },
  ethPeer: {
    long: 'eth-peer',
    value: 'PORT,ADDRESS',
    type: ETH_PEER,
    repeats: true,
    help: 'destination address of what leaves a port',
  },
  rxq: { long: 'rxq', value: 'COUNT', type: integer(1, MAX_QUEUES), default: '1', help: 'receive queues of a port' },
  txq: { long: 'txq', value: 'COUNT', type: integer(1, MAX_QUEUES), default: '1', help: 'transmit queues of a port' },
  rxd: { long: 'rxd', value: 'COUNT', type: integer(1, INT32_MAX), help: 'accepted without effect', note: OWN_RINGS },
  txd: { long: 'txd', value: 'COUNT', type: integer(1, INT32_MAX), help: 'accepted without effect', note: OWN_RINGS },
  totalNumMbufs: {
    long: 'total-num-mbufs',
    value: 'COUNT',
    type: integer(1024, INT32_MAX),
    help: 'accepted without effect',
    note: NO_MBUFS,
  },
  maxPktLen: {
    long: 'max-pkt-len',
    value: 'BYTES',
    type: integer(MIN_MAX_PKT_LEN, INT32_MAX),
    help: 'accepted without effect',
    note: OWN_FRAMES,
  },
  mbufSize: { long: 'mbuf-size', value: 'BYTES', type: TEXT, help: 'accepted without effect', note: NO_MBUFS },
  noFlushRx: { long: 'no-flush-rx', type: FLAG, help: 'forward what waits in receive queues at the start, too' },
  recordCycles: { long: 'record-core-cycles', type: FLAG, help: 'measure the time that packets take' },
  recordBursts: { long: 'record-burst-stats', type: FLAG, help: 'count how long bursts are' },
  noisyBuffer: noisy(
    'tx-sw-buffer-size',
    'PACKETS',
    MAX_NOISY_BUFFER,
    'noisy: packets that wait before they are sent on',
  ),
  noisyFlush: noisy('tx-sw-buffer-flushtime', 'MS', INT32_MAX, 'noisy: time after which they are sent; 0 = never'),
  noisyMemory: noisy('lkup-memory', 'MIB', MAX_NOISY_MIB, 'noisy: memory to look things up in'),
  noisyWrites: noisy('lkup-num-writes', 'COUNT', INT32_MAX, 'noisy: writes there for a packet'),
  noisyReads: noisy('lkup-num-reads', 'COUNT', INT32_MAX, 'noisy: reads there for a packet'),
  noisyReadWrites: noisy('lkup-num-reads-writes', 'COUNT', INT32_MAX, 'noisy: reads and writes there for a packet'),
} satisfies Record<string, Option>;

const COMMON = {
  help: { short: 'h', long: 'help', type: FLAG, help: 'show this help and exit' },
  version: { long: 'version', type: FLAG, help: 'show the version and exit' },
} satisfies Record<string, Option>;

const COMMON_ROWS: readonly Option[] = Object.values(COMMON);
const EAL_ROWS: readonly Option[] = [...Object.values(TESTPMD_EAL), ...EAL_IGNORED];
const APP_ROWS: readonly Option[] = [...Object.values(TESTPMD), ...Object.values(TRAFFIC), ...TESTPMD_IGNORED];

/**
 * Reads the arguments after the program's name. Throws ConfigError: unknown options and invalid values first, then devices, then
 * contradictions.
 */
export function parseTestpmd(argv: readonly string[]): TestpmdCommandLine {
  const { given, words } = takeApart(argv, { common: COMMON_ROWS, eal: EAL_ROWS, app: APP_ROWS });
  const help = givenValue(given, COMMON.help) ?? false;
  const version = givenValue(given, COMMON.version) ?? false;
  const vdevs = parseVdevs(allValues(given, TESTPMD_EAL.vdev));
  if (vdevs.length === 0 && !help && !version) {
    const problem = 'give at least one device, for example --vdev net_virtio_user0,path=/tmp/sock';
    throw new ConfigError('CONFIG_MISSING_VALUE', '--vdev', problem);
  }
  if (vdevs.length > DPDK_MAX_PORTS) {
    throw new ConfigError('CONFIG_CONFLICT', '--vdev', `${vdevs.length} devices; there can be ${DPDK_MAX_PORTS}`);
  }
  const { cores, ignored: ignoredEal, notes: notesEal } = resolveEal(given);
  const app = resolveTestpmd(given, vdevs.length, cores?.workers);
  checkQueues(app.forward, vdevs);
  refuseLater(given);
  const ignored = given.filter((one) => TESTPMD_IGNORED.includes(one.row)).map(spell);
  const notes = [...notesEal, ...vdevs.flatMap((vdev) => vdev.notes), ...notesOn(given), ...app.notes];
  return {
    help,
    version,
    showVersion: givenValue(given, TESTPMD_EAL.showVersion) ?? false,
    ...(cores === undefined ? {} : { cores }),
    ...app,
    vdevs,
    ignored: [...ignoredEal, ...ignored, ...words],
    notes,
  };
}

/** Queues come in pairs, as many as the device is given. */
function checkQueues({ rxq, txq }: ForwardConfig, vdevs: readonly Vdev[]): void {
  const wanted = Math.max(rxq, txq);
  const option = rxq === wanted ? '--rxq' : '--txq';
  for (const { kind, name, values } of vdevs) {
    if (kind !== 'net_virtio_user' || values.queues >= wanted) continue;
    const problem = `${name} has ${values.queues}; give its --vdev queues=${wanted}`;
    throw new ConfigError('CONFIG_CONFLICT', option, problem, { value: `${wanted}` });
  }
}

/** @param workers lcores that may forward, as far as the command line says */
function resolveTestpmd(given: readonly Given[], ports: number, workers: readonly LcoreCpus[] | undefined) {
  const interactive = givenValue(given, TESTPMD.interactive) ?? false;
  const autoStart = givenValue(given, TESTPMD.autoStart) ?? false;
  const txFirst = givenValue(given, TESTPMD.txFirst) ?? false;
  const statsPeriod = valueOrDefault(given, TESTPMD.statsPeriod);
  const burst = valueOrDefault(given, TESTPMD.burst);
  const { cores, coreOrder } = resolveCores(given, workers);
  const [rxq, txq] = [valueOrDefault(given, TESTPMD.rxq), valueOrDefault(given, TESTPMD.txq)];
  const notes: string[] = [];
  if (rxq !== txq) notes.push(`--rxq ${rxq}, --txq ${txq}: queues come in pairs; ports have ${Math.max(rxq, txq)}`);
  if (burst > MAX_BURST) notes.push(`--burst ${burst}: a burst has ${MAX_BURST} packets at most here`);
  if (interactive && statsPeriod > 0) notes.push('--stats-period: no effect with -i; use "show port stats all"');
  if (interactive && txFirst && !autoStart) notes.push('--tx-first: no effect with -i; use "start tx_first"');
  const noisyConfig = resolveNoisy(given);
  const traffic = resolveTraffic(given);
  const cmdlineFile = givenValue(given, TESTPMD.cmdlineFile);
  const forwardPorts = resolvePorts(given, ports);
  const ethPeersFile = givenValue(given, TESTPMD.ethPeersFile);
  const forward: ForwardConfig = {
    mode: valueOrDefault(given, TESTPMD.forwardMode),
    retry: false,
    retryDelay: RETRY_DELAY,
    retryNum: RETRIES,
    burst: Math.min(burst, MAX_BURST),
    txpkts: valueOrDefault(given, TESTPMD.txpkts),
    ethPeers: resolvePeers(given, ports),
    rxq,
    txq,
    cores,
    ...(coreOrder === undefined ? {} : { coreOrder }),
    noisy: noisyConfig,
    made: resolveMade(given, Math.min(burst, MAX_BURST)),
    ...(forwardPorts === undefined ? {} : { ports: forwardPorts }),
    flushRx: givenValue(given, TESTPMD.noFlushRx) === undefined,
    recordBursts: givenValue(given, TESTPMD.recordBursts) ?? false,
    recordCycles: givenValue(given, TESTPMD.recordCycles) ?? false,
    ...(Object.keys(traffic).length === 0 ? {} : { traffic }),
  };
  return {
    interactive,
    autoStart,
    txFirst: txFirst ? 1 : 0,
    statsPeriod,
    ...(cmdlineFile === undefined ? {} : { cmdlineFile }),
    ...(ethPeersFile === undefined ? {} : { ethPeersFile }),
    topology: valueOrDefault(given, TESTPMD.topology),
    forward,
    notes,
  };
}

/** How many lcores forward, and which of those that may, in their order. */
function resolveCores(
  given: readonly Given[],
  workers: readonly LcoreCpus[] | undefined,
): Pick<ForwardConfig, 'cores' | 'coreOrder'> {
  const cores = valueOrDefault(given, TESTPMD.nbCores);
  const mask = givenValue(given, TESTPMD.coreMask);
  if (mask !== undefined) {
    const lcores = workers?.map(({ lcore }) => lcore) ?? [];
    const missing = mask.find((lcore) => !lcores.includes(lcore));
    if (missing !== undefined) {
      const problem = `lcore ${missing} cannot forward; give it by -c, -l or --lcores, and another one before it as the main lcore`;
      throw new ConfigError('CONFIG_CONFLICT', '--coremask', problem);
    }
    const nbCores = givenValue(given, TESTPMD.nbCores) ?? mask.length;
    if (nbCores > mask.length) {
      const problem = `--coremask names ${mask.length}`;
      throw new ConfigError('CONFIG_CONFLICT', '--nb-cores', problem, { value: `${nbCores}` });
    }
    return { cores: nbCores, coreOrder: mask.map((lcore) => lcores.indexOf(lcore)) };
  }
  if (workers !== undefined && cores > workers.length) {
    const problem = `there are ${workers.length} lcores that can forward; give more by -c, -l or --lcores`;
    throw new ConfigError('CONFIG_CONFLICT', '--nb-cores', problem, { value: `${cores}` });
  }
  return { cores };
}

function resolveMade(given: readonly Given[], burst: number): MadeConfig {
  const { txFlow } = DEFAULT_MADE;
  const [source, dest] = givenValue(given, TESTPMD.txIp) ?? [txFlow.source, txFlow.dest];
  const [sourcePort, destPort] = givenValue(given, TESTPMD.txUdp) ?? [txFlow.sourcePort, txFlow.destPort];
  const clones = valueOrDefault(given, TESTPMD.flowgenClones);
  if (clones >= burst) {
    const problem = `a burst has ${burst} packets; give less, or a larger --burst`;
    throw new ConfigError('CONFIG_CONFLICT', '--flowgen-clones', problem, { value: `${clones}` });
  }
  return {
    txFlow: { source, dest, sourcePort, destPort },
    txMultiFlow: givenValue(given, TESTPMD.txMultiFlow) ?? false,
    flows: valueOrDefault(given, TESTPMD.flowgenFlows),
    clones,
  };
}

function resolveNoisy(given: readonly Given[]): NoisyConfig {
  const config = {
    bufferPackets: valueOrDefault(given, TESTPMD.noisyBuffer),
    flushMs: valueOrDefault(given, TESTPMD.noisyFlush),
    memoryMiB: valueOrDefault(given, TESTPMD.noisyMemory),
    writes: valueOrDefault(given, TESTPMD.noisyWrites),
    reads: valueOrDefault(given, TESTPMD.noisyReads),
    readWrites: valueOrDefault(given, TESTPMD.noisyReadWrites),
  };
  if (config.memoryMiB === 0 && config.writes + config.reads + config.readWrites > 0) {
    const problem = 'is 0, and there is nothing to look things up in; give it, or no numbers of reads and writes';
    throw new ConfigError('CONFIG_CONFLICT', '--noisy-lkup-memory', problem);
  }
  return config;
}

function resolvePorts(given: readonly Given[], ports: number): readonly number[] | undefined {
  const rows: Option[] = [TESTPMD.portMask, TESTPMD.portList, TESTPMD.nbPorts];
  const [chosen, second] = rows.flatMap((row) => given.findLast((one) => one.row === row) ?? []);
  if (chosen === undefined) return undefined;
  if (second !== undefined) {
    throw new ConfigError('CONFIG_CONFLICT', second.name, `not together with ${spell(chosen)}`, { value: second.text });
  }
  const named =
    chosen.row === TESTPMD.nbPorts
      ? Array.from({ length: chosen.value as number }, (_, i) => i)
      : (chosen.value as readonly number[]);
  checkPorts(chosen.name, chosen.text, named, ports);
  return named;
}

function resolvePeers(given: readonly Given[], ports: number): Map<number, string> {
  const peers = allValues(given, TESTPMD.ethPeer);
  for (const { port, mac } of peers) checkPorts('--eth-peer', `${port},${mac}`, [port], ports);
  return new Map(peers.map(({ port, mac }) => [port, mac]));
}

function checkPorts(option: string, value: string, named: readonly number[], ports: number): void {
  const missing = named.find((port) => port >= ports);
  if (missing === undefined) return;
  const there = ports === 1 ? 'only port 0' : `ports 0 to ${ports - 1}, one for each --vdev`;
  throw new ConfigError('CONFIG_CONFLICT', option, `there is no port ${missing}; there are ${there}`, { value });
}

/** The help of vhost-testpmd: at most 100 columns, with a final newline. */
export function testpmdHelp(): string {
  const ignoredNames = [...EAL_IGNORED, ...TESTPMD_IGNORED].map(optionName).join(', ');
  return `usage: vhost-testpmd [EAL options] -- [application options]

Forwards packets between ports, or makes them, and counts: DPDK's testpmd for this package's ports.

${formatHelp(COMMON_ROWS)}

EAL options, as in DPDK; of -c, -l and --lcores only one:
${formatHelp(Object.values(TESTPMD_EAL))}

Accepted for DPDK's sake, without meaning here:
${fold(`  ${ignoredNames}`, 2)}

Application options:
${formatHelp(Object.values(TESTPMD))}

Packets that tell what became of them, and capture files:
${formatHelp(Object.values(TRAFFIC))}

Long options may be shortened as long as they stay unique, and take their value as --name VALUE or
--name=VALUE. With -i, "help" at the prompt lists the commands.
`;
}
