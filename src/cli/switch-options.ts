/**
 * The options of the switch itself: those of DPDK's vhost sample, past and present, with their names, ranges, defaults and conflicts,
 * and our own. Options whose machinery comes with a later version are checked like the others and then refused.
 */
import { normalize } from 'node:path';
import { ConfigError } from '../errors.ts';
import { MAX_RETRY_US } from '../port/rx-retry.ts';
import type { PortVlan, RxRetryConfig, VlanConfig } from '../switch/switch-config.ts';
import { VIRTIO_NET_MAX_PAIRS } from '../uapi/virtio-net.ts';
import {
  allValues,
  choice,
  FLAG,
  type Given,
  givenValue,
  hexMask,
  integer,
  ON_OFF,
  type Option,
  optionName,
  spell,
  type ValueType,
  valueOrDefault,
} from './options.ts';
import { resolveVlan, SOCKET_PATH, SOCKET_WITH_VLAN, type SocketWithVlan } from './vlan-options.ts';

/** What the options of the switch say, defaults included. */
export interface SwitchSettings {
  /** Paths of the sockets to listen on, or with `client` to connect to; at least one, each once. */
  readonly sockets: readonly string[];
  /** VLANs of the devices of sockets that have some of their own, by path. */
  readonly vlans: ReadonlyMap<string, PortVlan>;
  /** Front ends listen on the sockets. */
  readonly client: boolean;
  /** 0: guests reach each other through an uplink only; 1: the switch forwards between them; 2: the one behind the uplink does. */
  readonly vm2vm: 0 | 1 | 2;
  /** Absent: tags are not looked at. */
  readonly vlan?: VlanConfig;
  /** Absent: frames from the uplink do not wait for room in receive queues. */
  readonly rxRetry?: RxRetryConfig;
  readonly mergeable: boolean;
  readonly txCsum: boolean;
  readonly tso: boolean;
  readonly iommu: boolean;
  readonly ringReset: boolean;
  readonly configSpace: boolean;
  readonly postcopy: boolean;
  /** queue pairs a device */
  readonly queues: number;
  readonly learning: 'dynamic' | 'first';
  readonly poll: 'adaptive' | 'busy';
  /** Seconds between two tables of statistics, 0 = none; up to 2^31 - 1, more than a timer holds. */
  readonly statsSeconds: number;
  /** Stop after so many seconds, 0 = never. */
  readonly seconds: number;
  /** Seconds after which an address not seen again is forgotten, 0 = never. */
  readonly macAgeing: number;
  /** Addresses the table holds. */
  readonly macTableSize: number;
  /** Addresses one device may have in the table. */
  readonly macLimit: number;
  /** Permission bits of the sockets. */
  readonly socketMode: number;
  /** Name or number of the sockets' owner; absent = unchanged. */
  readonly socketOwner?: string | number;
  /** Name or number of the sockets' group; absent = unchanged. */
  readonly socketGroup?: string | number;
  readonly maxDevices: number;
  /** The numbers of the ports to use as uplinks. */
  readonly enabledPorts: readonly number[];
}

const INT32_MAX = 2147483647;
/** What a timer counting milliseconds in 31 bits holds. */
const MAX_TIMER_SECONDS = 2147483;
const MAX_MACS = 1048576;
const MAX_PORTS = 32;

const DESC_COUNT: ValueType<number> = {
  range: '0..4096, a power of two or 0',
  parse: (text) => {
    const count = integer(0, 4096).parse(text);
    return count === undefined || (count & (count - 1)) !== 0 ? undefined : count;
  },
};

const FILE_MODE: ValueType<number> = {
  range: 'octal 0..0777',
  parse: (text) => (/^0*[0-7]{1,3}$/.test(text) ? Number.parseInt(text, 8) : undefined),
};

const ACCOUNT: ValueType<string | number> = {
  range: 'a name or a number below 4294967295',
  parse: (text) => (/^\d*$/.test(text) ? integer(0, 4294967294).parse(text) : text),
};

const DMA_LIST: ValueType<string> = {
  range: '[txdN@DEVICE,rxdN@DEVICE,...] with the brackets',
  parse: (text) => (/^\[[tr]xd\d+@[^,@\]]+(?:,[tr]xd\d+@[^,@\]]+)*\]$/.test(text) ? text : undefined),
};

const NEEDS_ZERO_COPY = 'no effect without --zero-copy 1';

/** A row with a value and a default. */
function setting<T>(long: string, value: string, type: ValueType<T>, fallback: string, help: string) {
  return { long, value, type, default: fallback, help };
}

/** The options of the switch, in the order of the help. */
export const SWITCH = {
  socketFile: {
    long: 'socket-file',
    value: 'PATH',
    type: SOCKET_WITH_VLAN,
    repeats: true,
    help:
      'socket to listen on, in place of the one of --dev-basename, for any number of guests; ,vlan=VID behind the path puts them into a ' +
      'VLAN, ,trunk=VIDS,native=VID into several',
  },
  devBasename: setting(
    'dev-basename',
    'NAME',
    SOCKET_PATH,
    'vhost-net',
    'name of the socket to create in the current directory',
  ),
  devIndex: {
    long: 'dev-index',
    value: 'INDEX',
    type: integer(0, INT32_MAX),
    help: 'number after the name of the character device (later version); a socket does not carry it',
    note: 'names the character device only, which comes with a later version; the name of the socket does not change',
  },
  socketMode: setting('socket-mode', 'MODE', FILE_MODE, '0660', 'permissions of the sockets'),
  socketOwner: { long: 'socket-owner', value: 'USER|UID', type: ACCOUNT, help: 'owner of the sockets' },
  socketGroup: { long: 'socket-group', value: 'GROUP|GID', type: ACCOUNT, help: 'group of the sockets' },
  client: {
    long: 'client',
    type: FLAG,
    help: 'connect to the sockets of --socket-file, where QEMU listens',
  },
  maxDevices: setting('max-devices', 'COUNT', integer(1, 1024), '64', 'devices at most'),
  vm2vm: setting(
    'vm2vm',
    'MODE',
    integer(0, 2),
    '1',
    'switching between guests: 0 = off, 1 = software, 2 = hardware, by the switch behind the uplink',
  ),
  learning: setting(
    'learning',
    'HOW',
    choice('dynamic', 'first'),
    'dynamic',
    'dynamic = like a bridge, with ageing and flooding; first = like the sample, the first MAC address of a device for good',
  ),
  macAgeing: setting(
    'mac-ageing',
    'SECONDS',
    integer(0, 1000000),
    '300',
    'forget an address not seen for so long; 0 = never',
  ),
  macTableSize: setting('mac-table-size', 'COUNT', integer(1, MAX_MACS), '8192', 'addresses to learn at most'),
  macLimit: setting('mac-limit', 'COUNT', integer(1, MAX_MACS), '1024', 'addresses to learn from one device at most'),
  mergeable: setting('mergeable', '0|1', ON_OFF, '0', 'mergeable receive buffers, for jumbo frames'),
  poll: setting(
    'poll',
    'HOW',
    choice('adaptive', 'busy'),
    'adaptive',
    'adaptive = sleep when idle; busy = never sleep',
  ),
  stats: setting('stats', 'SECONDS', integer(0, INT32_MAX), '0', 'print statistics at this interval; 0 = never'),
  seconds: setting('seconds', 'SECONDS', integer(0, MAX_TIMER_SECONDS), '0', 'stop after so long; 0 = at Ctrl-C'),
  portMask: {
    short: 'p',
    value: 'PORTMASK',
    type: hexMask(MAX_PORTS),
    help: 'port to use as the uplink: bit 0 is the first of -a and --vdev; none without -p',
  },
  promiscuous: {
    short: 'P',
    type: FLAG,
    help: 'uplink in promiscuous mode, which it always is',
    note: 'the uplink always takes frames to all addresses: those of guests are none of its own',
  },
  vlan: setting(
    'vlan',
    'HOW',
    choice('auto', 'off'),
    'auto',
    'tags on the uplink of guests whose sockets have no VLAN: auto = 1000 + number of the device; off = none',
  ),
  guestVlan: {
    long: 'guest-vlan',
    value: 'HOW',
    type: choice('drop', 'trust', 'qinq'),
    help: 'frames with a VLAN tag of the guest: drop, the default; trust = leave the tag; qinq = put the own one around it (802.1ad)',
  },
  vlanStrip: setting('vlan-strip', '0|1', ON_OFF, '1', 'strip the VLAN tags of frames from the uplink'),
  rxRetry: setting(
    'rx-retry',
    '0|1',
    ON_OFF,
    '1',
    'wait for room when the receive queue of a guest is full, with frames from the uplink',
  ),
  rxRetryNum: setting('rx-retry-num', 'COUNT', integer(0, INT32_MAX), '4', 'times that a burst waits at most'),
  rxRetryDelay: setting('rx-retry-delay', 'USEC', integer(0, INT32_MAX), '15', 'how long it waits each time'),
  txCsum: setting('tx-csum', '0|1', ON_OFF, '1', 'let guests leave checksums to who receives'),
  tso: {
    long: 'tso',
    value: '0|1',
    type: ON_OFF,
    help: 'leave segmentation to who receives; as --mergeable if left out',
  },
  iommu: setting('iommu', '0|1', ON_OFF, '0', "let guests' IOMMUs translate the addresses (ACCESS_PLATFORM)"),
  ringReset: setting(
    'ring-reset',
    '0|1',
    ON_OFF,
    '0',
    'let guests reset queues singly; not for QEMU 7.2, which does not tell',
  ),
  configSpace: setting(
    'config-space',
    '0|1',
    ON_OFF,
    '0',
    'let front ends ask for the config space; QEMU warns that it does not',
  ),
  postcopy: setting(
    'postcopy',
    '0|1',
    ON_OFF,
    '0',
    'receive guests by postcopy migration; only for front ends that may do as they like with the switch',
  ),
  queues: setting('queues', 'COUNT', integer(1, VIRTIO_NET_MAX_PAIRS), '128', 'queue pairs of a device, at most'),
  zeroCopy: {
    ...setting(
      'zero-copy',
      '0|1',
      ON_OFF,
      '0',
      'zero copy between guests and the uplink; not with --vm2vm 1 or --mergeable 1',
    ),
    laterValue: '1',
    later: 'zero copy is not in this version yet; leave --zero-copy out, packets between guests are copied once',
  },
  rxDescNum: {
    ...setting('rx-desc-num', 'COUNT', DESC_COUNT, '32', 'receive descriptors of the uplink, with zero copy'),
    note: NEEDS_ZERO_COPY,
  },
  txDescNum: {
    ...setting('tx-desc-num', 'COUNT', DESC_COUNT, '64', 'transmit descriptors of the uplink, with zero copy'),
    note: NEEDS_ZERO_COPY,
  },
  dmas: {
    long: 'dmas',
    value: 'LIST',
    type: DMA_LIST,
    help: 'DMA devices to copy packets with',
    later: 'copying by DMA devices is not in this version yet; leave --dmas out, the CPU copies',
  },
  totalNumMbufs: {
    ...setting('total-num-mbufs', 'COUNT', integer(0, INT32_MAX), '147456', 'accepted without effect'),
    note: 'no effect: there is no pool of packet buffers to size',
  },
  builtinNetDriver: {
    long: 'builtin-net-driver',
    type: FLAG,
    help: 'accepted without effect',
    note: 'no effect: there is one driver only',
  },
  nbDevices: {
    long: 'nb-devices',
    value: 'COUNT',
    type: integer(0, INT32_MAX),
    help: 'accepted without effect',
    note: 'no effect; --max-devices sets the number of devices',
  },
} satisfies Record<string, Option>;

/** What the options of the switch among `given` say. Throws ConfigError for values that contradict each other. */
export function resolveSwitch(given: readonly Given[]): SwitchSettings {
  checkPorts(given);
  checkZeroCopy(given);
  checkClient(given);
  checkOffloads(given);
  checkHardware(given);
  const sockets = socketsOf(given);
  const vlan = resolveVlan({
    sockets,
    plan: valueOrDefault(given, SWITCH.vlan) === 'auto' ? 'device' : 'none',
    guest: givenValue(given, SWITCH.guestVlan),
    strip: valueOrDefault(given, SWITCH.vlanStrip),
    learning: valueOrDefault(given, SWITCH.learning),
    maxDevices: valueOrDefault(given, SWITCH.maxDevices),
    hasUplink: hasUplink(given),
  });
  const mergeable = valueOrDefault(given, SWITCH.mergeable);
  const txCsum = valueOrDefault(given, SWITCH.txCsum);
  const owner = givenValue(given, SWITCH.socketOwner);
  const group = givenValue(given, SWITCH.socketGroup);
  return {
    sockets: sockets.map(({ path }) => path),
    vlans: new Map(sockets.flatMap(({ path, vlan: own }) => (own === undefined ? [] : [[path, own]]))),
    client: givenValue(given, SWITCH.client) ?? false,
    vm2vm: valueOrDefault(given, SWITCH.vm2vm) as 0 | 1 | 2,
    ...(vlan === undefined ? {} : { vlan }),
    ...(valueOrDefault(given, SWITCH.rxRetry) ? { rxRetry: retryOf(given) } : {}),
    mergeable,
    txCsum,
    tso: givenValue(given, SWITCH.tso) ?? (mergeable && txCsum),
    iommu: valueOrDefault(given, SWITCH.iommu),
    ringReset: valueOrDefault(given, SWITCH.ringReset),
    configSpace: valueOrDefault(given, SWITCH.configSpace),
    postcopy: valueOrDefault(given, SWITCH.postcopy),
    queues: valueOrDefault(given, SWITCH.queues),
    learning: valueOrDefault(given, SWITCH.learning),
    poll: valueOrDefault(given, SWITCH.poll),
    statsSeconds: valueOrDefault(given, SWITCH.stats),
    seconds: valueOrDefault(given, SWITCH.seconds),
    macAgeing: valueOrDefault(given, SWITCH.macAgeing),
    macTableSize: valueOrDefault(given, SWITCH.macTableSize),
    macLimit: valueOrDefault(given, SWITCH.macLimit),
    socketMode: valueOrDefault(given, SWITCH.socketMode),
    ...(owner === undefined ? {} : { socketOwner: owner }),
    ...(group === undefined ? {} : { socketGroup: group }),
    maxDevices: valueOrDefault(given, SWITCH.maxDevices),
    enabledPorts: givenValue(given, SWITCH.portMask) ?? [],
  };
}

function checkPorts(given: readonly Given[]): void {
  const ports = givenValue(given, SWITCH.portMask);
  if (ports !== undefined && ports.length > 1) {
    const problem = `${ports.length} ports are enabled, but only 1 port can be enabled`;
    throw new ConfigError('CONFIG_INVALID_VALUE', '-p', problem, { range: 'one port' });
  }
}

/** There is a port that leads out. */
function hasUplink(given: readonly Given[]): boolean {
  return givenValue(given, SWITCH.portMask) !== undefined;
}

function retryOf(given: readonly Given[]): RxRetryConfig {
  return { num: valueOrDefault(given, SWITCH.rxRetryNum), delayUs: valueOrDefault(given, SWITCH.rxRetryDelay) };
}

/** What the user should know of options that do less than they seem to: without an uplink, or because a wait is bounded. */
export function uplinkNotes(given: readonly Given[]): string[] {
  const rows: Option[] = [SWITCH.vlan, SWITCH.vlanStrip, SWITCH.rxRetry, SWITCH.rxRetryNum, SWITCH.rxRetryDelay];
  const counting = given.filter(
    (one) => rows.includes(one.row) && one === given.findLast(({ row }) => row === one.row),
  );
  if (!hasUplink(given)) return counting.map((one) => `${spell(one)}: no effect without an uplink`);
  const { num, delayUs } = retryOf(given);
  const asked = counting.find(({ row }) => row === SWITCH.rxRetryNum || row === SWITCH.rxRetryDelay);
  if (asked === undefined || num * delayUs <= MAX_RETRY_US || !valueOrDefault(given, SWITCH.rxRetry)) return [];
  return [`${spell(asked)}: a burst waits ${MAX_RETRY_US} µs at most, since all other guests wait meanwhile`];
}

function checkHardware(given: readonly Given[]): void {
  if (valueOrDefault(given, SWITCH.vm2vm) !== 2 || hasUplink(given)) return;
  const problem =
    'hardware switching needs an uplink; name one with --vdev and choose it with -p, or use --vm2vm 1 (software) or --vm2vm 0 (off)';
  throw new ConfigError('CONFIG_CONFLICT', '--vm2vm', problem, { value: '2' });
}

function checkOffloads(given: readonly Given[]): void {
  if (givenValue(given, SWITCH.tso) !== true || valueOrDefault(given, SWITCH.txCsum)) return;
  const problem = 'not without checksums left to who receives; use --tx-csum 1';
  throw new ConfigError('CONFIG_CONFLICT', '--tso', problem, { value: '1' });
}

function checkZeroCopy(given: readonly Given[]): void {
  if (!valueOrDefault(given, SWITCH.zeroCopy)) return;
  if (valueOrDefault(given, SWITCH.vm2vm) === 1) {
    const problem = 'not with software switching between guests; use --vm2vm 2 (hardware) or --vm2vm 0 (off)';
    throw new ConfigError('CONFIG_CONFLICT', '--zero-copy', problem, { value: '1' });
  }
  if (valueOrDefault(given, SWITCH.mergeable)) {
    const problem = 'not with jumbo frames; use --mergeable 0';
    throw new ConfigError('CONFIG_CONFLICT', '--zero-copy', problem, { value: '1' });
  }
}

/** A client has no socket of its own to name or to give away, and one device for each that it connects to. */
function checkClient(given: readonly Given[]): void {
  if (givenValue(given, SWITCH.client) === undefined) return;
  const own = [SWITCH.devBasename, SWITCH.socketMode, SWITCH.socketOwner, SWITCH.socketGroup] as const;
  for (const row of own) {
    if (givenValue<unknown>(given, row) === undefined) continue;
    const problem = 'not with --client, which creates no socket; it connects to those of --socket-file';
    throw new ConfigError('CONFIG_CONFLICT', optionName(row), problem);
  }
  const count = allValues(given, SWITCH.socketFile).length;
  if (count === 0) {
    const problem = 'needs a socket to connect to; give --socket-file, once for each guest';
    throw new ConfigError('CONFIG_CONFLICT', '--client', problem);
  }
  const max = valueOrDefault(given, SWITCH.maxDevices);
  if (count <= max) return;
  const problem = `${count} sockets with a device each, but --max-devices ${max}; raise it, or connect to fewer`;
  throw new ConfigError('CONFIG_CONFLICT', '--client', problem);
}

function socketsOf(given: readonly Given[]): SocketWithVlan[] {
  const files = allValues(given, SWITCH.socketFile);
  const basename = givenValue(given, SWITCH.devBasename);
  const sockets = [...files];
  if (basename !== undefined || files.length === 0)
    sockets.unshift({ path: valueOrDefault(given, SWITCH.devBasename), vlan: undefined });
  sockets.forEach(({ path }, at) => {
    const twice = sockets.findIndex((other) => normalize(other.path) === normalize(path)) !== at;
    if (twice) throw new ConfigError('CONFIG_CONFLICT', '--socket-file', `the socket ${path} is given twice`);
  });
  return sockets;
}
