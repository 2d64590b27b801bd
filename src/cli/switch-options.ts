/** The options of the switch itself: those of DPDK's vhost sample, past and present, with their names, ranges and defaults, and our own. */
import { VIRTIO_NET_MAX_PAIRS } from '../uapi/virtio-net.ts';
import { choice, FLAG, hexMask, integer, ON_OFF, type Option, type ValueType } from './options.ts';
import { SOCKET_PATH, SOCKET_WITH_VLAN } from './vlan-options.ts';

const INT32_MAX = 2147483647;
/** What a timer counting milliseconds in 31 bits holds. */
const MAX_TIMER_SECONDS = 2147483;
const MAX_MACS = 1048576;
const MAX_PORTS = 32;
const MAX_SPIN_US = 1000000;

const DESC_COUNT: ValueType<number> = {
  range: '0..4096, a power of two or 0',
  parse: (text) => {
    const count = integer(0, 4096).parse(text);
    return count === undefined || (count & (count - 1)) !== 0 ? undefined : count;
  },
};

const DEVICE_NUMBER: ValueType<{ readonly major: number; readonly minor: number }> = {
  range: '1..511:0..1048575',
  parse: (text) => {
    const [major, minor, ...rest] = text.split(':');
    const number = { major: integer(1, 511).parse(major), minor: integer(0, 1048575).parse(minor ?? '') };
    if (number.major === undefined || number.minor === undefined || rest.length > 0) return undefined;
    return { major: number.major, minor: number.minor };
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
  vhost: setting(
    'vhost',
    'HOW',
    choice('user', 'cuse', 'both'),
    'user',
    'user = by sockets; cuse = by a character device that is like /dev/vhost-net, for QEMU with vhostfd=; both',
  ),
  devBasename: setting(
    'dev-basename',
    'NAME',
    SOCKET_PATH,
    'vhost-net',
    'name of the socket to create in the current directory; with --vhost cuse, of the device: /dev/NAME-INDEX',
  ),
  devIndex: {
    long: 'dev-index',
    value: 'INDEX',
    type: integer(0, INT32_MAX),
    help: 'number behind the name of the character device, 0 if left out; a socket does not carry it',
  },
  devNumber: {
    long: 'dev-number',
    value: 'MAJOR:MINOR',
    type: DEVICE_NUMBER,
    help:
      "number of the character device, which the kernel chooses if it is left out; DPDK's virtio-user takes only one with major 10, such " +
      'as 10:4096 where the kernel has that free',
  },
  socketMode: setting('socket-mode', 'MODE', FILE_MODE, '0660', 'permissions of the sockets and the device'),
  socketOwner: { long: 'socket-owner', value: 'USER|UID', type: ACCOUNT, help: 'owner of the sockets and the device' },
  socketGroup: { long: 'socket-group', value: 'GROUP|GID', type: ACCOUNT, help: 'group of the sockets and the device' },
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
  spinUs: setting(
    'spin',
    'USEC',
    integer(0, MAX_SPIN_US),
    '200',
    'adaptive: how long an lcore looks for packets in vain at most',
  ),
  spinPercent: setting(
    'spin-share',
    'PERCENT',
    integer(0, 100),
    '50',
    'adaptive: and for how much of the time that it has worked',
  ),
  rebalanceSeconds: setting(
    'rebalance',
    'SECONDS',
    integer(0, MAX_TIMER_SECONDS),
    '0',
    'move queues from busy lcores to idle ones, looking at this interval; 0 = never',
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
