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
