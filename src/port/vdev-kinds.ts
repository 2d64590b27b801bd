/**
 * The kinds of virtual devices that --vdev may name, with DPDK's names of their keys: a row makes a key known, says what its value
 * is, and what it is when left out. What a combination means, and what is allowed on this machine, the port's own file decides.
 * @see DPDK guides/nics, one page for each kind
 */
import { VIRTIO_NET_MAX_PAIRS } from '../uapi/virtio-net.ts';
import { boundedText, choice, integer, MAC_ADDRESS, ON_OFF, powerOfTwo, type ValueType } from './text-values.ts';

/** One key of a kind. */
export interface VdevKey<T = unknown> {
  readonly type: ValueType<T>;
  /** Text of the value when the key is left out. */
  readonly default?: string;
  /** It must be given. */
  readonly required?: true;
  /** It may be given again and again: its value is a list, empty without. */
  readonly repeats?: true;
  /** Said to a user who gives it, since it has no effect here. */
  readonly note?: string;
}

export interface VdevKind {
  /** DPDK's other names for it */
  readonly aliases: readonly string[];
  readonly keys: Readonly<Record<string, VdevKey>>;
}

const INT32_MAX = 2147483647;
/** sun_path of sockaddr_un, less the final zero. */
const SOCKET_PATH = boundedText('a path', 107);
const FILE_PATH = boundedText('a path', 4095);
/** IFNAMSIZ, less the final zero. */
const INTERFACE = boundedText('the name of an interface', 15);
/** The same, in the network namespace that ip netns calls so. */
const PLACED_INTERFACE: ValueType<string> = {
  range: `${INTERFACE.range}, or NAMESPACE:INTERFACE`,
  parse: (text) => {
    const [, name] = /^(?:(?!\.{1,2}:)[^/:]{1,255}:)?([^/:]*)$/.exec(text) ?? [];
    return name === undefined || INTERFACE.parse(name) === undefined ? undefined : text;
  },
};
const COUNT = integer(1, INT32_MAX);
const BYTES = integer(1, INT32_MAX);

function key<T>(type: ValueType<T>) {
  return { type };
}

function required<T>(type: ValueType<T>) {
  return { type, required: true as const };
}

function setting<T>(type: ValueType<T>, fallback: string) {
  return { type, default: fallback };
}

function list<T>(type: ValueType<T>) {
  return { type, repeats: true as const };
}

function ignored<T>(type: ValueType<T>, note: string) {
  return { type, note };
}

export const VDEV_KINDS = {
  net_virtio_user: {
    aliases: ['virtio_user'],
    keys: {
      path: required(SOCKET_PATH),
      mac: key(MAC_ADDRESS),
      queues: setting(integer(1, VIRTIO_NET_MAX_PAIRS), '1'),
      queue_size: setting(powerOfTwo(2, 32768), '256'),
      server: setting(ON_OFF, '0'),
      mrg_rxbuf: setting(ON_OFF, '1'),
      in_order: setting(ON_OFF, '1'),
      packed_vq: setting(ON_OFF, '0'),
      offloads: setting(ON_OFF, '0'),
      speed: key(integer(0, INT32_MAX)),
      cq: ignored(ON_OFF, 'no effect: there is no control queue'),
      vectorized: ignored(ON_OFF, 'no effect: there is one way to drive the rings, the fast one'),
    },
  },
  net_null: {
    aliases: ['eth_null'],
    keys: {
      size: setting(integer(14, 65535), '64'),
      copy: setting(ON_OFF, '0'),
      'no-rx': setting(ON_OFF, '0'),
    },
  },
  net_ring: { aliases: ['eth_ring'], keys: {} },
  net_pcap: {
    aliases: ['eth_pcap'],
    keys: {
      rx_pcap: list(FILE_PATH),
      tx_pcap: list(FILE_PATH),
      rx_iface: list(INTERFACE),
      rx_iface_in: list(INTERFACE),
      tx_iface: list(INTERFACE),
      iface: key(PLACED_INTERFACE),
      phy_mac: setting(ON_OFF, '0'),
      infinite_rx: setting(ON_OFF, '0'),
    },
  },
  net_af_packet: {
    aliases: ['eth_af_packet'],
    keys: {
      iface: required(PLACED_INTERFACE),
      qpairs: setting(integer(1, 16), '1'),
      blocksz: key(BYTES),
      framesz: key(BYTES),
      framecnt: key(COUNT),
      qdisc_bypass: setting(ON_OFF, '0'),
      steer: setting(ON_OFF, '0'),
    },
  },
  net_tap: {
    aliases: ['eth_tap'],
    keys: {
      iface: key(PLACED_INTERFACE),
      mac: key<string>({
        range: `fixed, or ${MAC_ADDRESS.range}`,
        parse: (text) => (text === 'fixed' ? text : MAC_ADDRESS.parse(text)),
      }),
      remote: key(INTERFACE),
      persist: {
        type: { range: 'nothing, or 0|1', parse: (text: string) => (text === '' ? true : ON_OFF.parse(text)) },
      },
    },
  },
  net_af_xdp: {
    aliases: [],
    keys: {
      iface: required(PLACED_INTERFACE),
      start_queue: setting(integer(0, 65535), '0'),
      queue_count: setting(integer(1, 64), '1'),
      shared_umem: ignored(ON_OFF, 'no effect: each queue has its own'),
      busy_budget: ignored(integer(0, 65535), 'no effect: the kernel is not asked to poll'),
      force_copy: setting(ON_OFF, '0'),
      mode: setting(choice('auto', 'skb', 'native', 'zc'), 'auto'),
      steer_queues: setting(integer(1, 64), '1'),
      ntuple: setting(ON_OFF, '0'),
    },
  },
} as const satisfies Readonly<Record<string, VdevKind>>;
