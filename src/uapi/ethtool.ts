/**
 * What interfaces can be asked by ioctl(2).
 * @see linux/ethtool.h, linux/if.h, netdevice(7)
 */
import { layout } from './layout.ts';

export const SIOCETHTOOL = 0x8946;
export const ETHTOOL_GFLAGS = 0x25;
/** The interface takes VLAN tags off what it receives, and passes them on beside the frame. */
export const ETH_FLAG_RXVLAN = 0x100;

export const IFNAMSIZ = 16;
/** `ifr_data` is a pointer, and the first member of a union of 24 bytes. */
export const IFREQ = layout('ifreq', { ifr_name: ['u8', IFNAMSIZ], ifr_data: ['u64', 3] });
export const ETHTOOL_VALUE = layout('ethtool_value', { cmd: 'u32', data: 'u32' });

/** Filters of a card: which frames come by which of its queues. */
export const ETHTOOL_GRXCLSRLCNT = 0x2e;
export const ETHTOOL_GRXCLSRLALL = 0x30;
export const ETHTOOL_SRXCLSRLDEL = 0x31;
export const ETHTOOL_SRXCLSRLINS = 0x32;
/** In `flow_type`: Ethernet's own fields are compared; and those of `h_ext`, too. */
export const ETHER_FLOW = 0x12;
export const FLOW_EXT = 0x80000000;
/** In the count's `data`: the card takes the special locations below. */
export const RX_CLS_LOC_SPECIAL = 0x80000000;
/** In place of a location: before all others, or behind. */
export const RX_CLS_LOC_FIRST = 0xfffffffe;
export const RX_CLS_LOC_LAST = 0xfffffffd;

/** Multi-byte fields are big-endian. */
export const ETHTOOL_FLOW_EXT = layout('ethtool_flow_ext', {
  padding: ['u8', 2],
  h_dest: ['u8', 6],
  vlan_etype: 'u16',
  vlan_tci: 'u16',
  data: ['u32', 2],
});
/** `h_…` is compared under the mask `m_…`; of ETHER_FLOW `h_u` is a struct ethhdr. */
export const ETHTOOL_RX_FLOW_SPEC = layout('ethtool_rx_flow_spec', {
  flow_type: 'u32',
  h_u: ['u32', 13],
  h_ext: ['u32', 5],
  m_u: ['u32', 13],
  m_ext: ['u32', 5],
  ring_cookie: 'u64',
  location: 'u32',
});
/** `fs` is a struct ethtool_rx_flow_spec; behind the whole are `rule_locs`, u32 each. */
export const ETHTOOL_RXNFC = layout('ethtool_rxnfc', {
  cmd: 'u32',
  flow_type: 'u32',
  data: 'u64',
  fs: ['u64', 21],
  rule_cnt: 'u32',
});
