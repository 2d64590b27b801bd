/**
 * What rtnetlink says of network interfaces.
 * @see netlink(7), rtnetlink(7); linux/rtnetlink.h, linux/if_link.h, linux/if.h
 */
import { layout } from './layout.ts';

export const NLMSGHDR = layout('nlmsghdr', {
  nlmsg_len: 'u32',
  nlmsg_type: 'u16',
  nlmsg_flags: 'u16',
  nlmsg_seq: 'u32',
  nlmsg_pid: 'u32',
});
export const NLMSGERR = layout('nlmsgerr', { error: 's32', msg: ['u32', 4] });
export const IFINFOMSG = layout('ifinfomsg', {
  ifi_family: 'u8',
  __ifi_pad: 'u8',
  ifi_type: 'u16',
  ifi_index: 's32',
  ifi_flags: 'u32',
  ifi_change: 'u32',
});
/** In front of an attribute's bytes; both together take a multiple of four. */
export const RTATTR = layout('rtattr', { rta_len: 'u16', rta_type: 'u16' });
export const SOCKADDR_NL = layout('sockaddr_nl', { nl_family: 'u16', nl_pad: 'u16', nl_pid: 'u32', nl_groups: 'u32' });

export const NLM_F_REQUEST = 1;
export const NLM_F_ACK = 4;
export const NLM_F_EXCL = 0x200;
export const NLM_F_CREATE = 0x400;
export const NLMSG_ERROR = 2;
export const RTM_NEWLINK = 16;
export const RTM_DELLINK = 17;
export const RTM_GETLINK = 18;
export const RTMGRP_LINK = 1;

export const IFLA_ADDRESS = 1;
export const IFLA_IFNAME = 3;
export const IFLA_MTU = 4;
export const IFLA_LINKINFO = 18;
export const IFLA_NET_NS_FD = 28;
export const IFLA_NUM_TX_QUEUES = 31;
export const IFLA_NUM_RX_QUEUES = 32;

/** Within IFLA_LINKINFO: what kind of interface, and what that kind wants to know; of a veth pair its other end. */
export const IFLA_INFO_KIND = 1;
export const IFLA_INFO_DATA = 2;
export const VETH_INFO_PEER = 1;

/** `ifi_type` of Ethernet. */
export const ARPHRD_ETHER = 1;
export const IFF_UP = 1;
/** Up, and the other end is there. */
export const IFF_RUNNING = 0x40;
