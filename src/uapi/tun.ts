/**
 * TAP interfaces, and the ioctls that set an interface up.
 * @see linux/if_tun.h, linux/sockios.h; Documentation/networking/tuntap.rst; netdevice(7)
 */
import { layout } from './layout.ts';

/** IFNAMSIZ: an interface's name with its final NUL */
export const IFNAMSIZ = 16;
/** What follows the name is a union, of which ifr_flags and ifr_hwaddr (a sockaddr: family and data) are used here. */
export const IFREQ = layout('ifreq', { ifr_name: ['u8', IFNAMSIZ], ifr_ifru: ['u64', 3] });

export const TUNSETIFF = 0x400454ca;
export const TUNSETPERSIST = 0x400454cb;
export const TUNSETOFFLOAD = 0x400454d0;
export const TUNSETVNETHDRSZ = 0x400454d8;

export const IFF_TAP = 0x0002;
export const IFF_MULTI_QUEUE = 0x0100;
export const IFF_NO_PI = 0x1000;
export const IFF_VNET_HDR = 0x4000;

/** What the kernel may leave undone in frames that are read. */
export const TUN_F_CSUM = 0x01;
export const TUN_F_TSO4 = 0x02;
export const TUN_F_TSO6 = 0x04;
export const TUN_F_TSO_ECN = 0x08;
export const TUN_F_USO4 = 0x20;
export const TUN_F_USO6 = 0x40;

export const SIOCGIFFLAGS = 0x8913;
export const SIOCSIFFLAGS = 0x8914;
export const SIOCSIFHWADDR = 0x8924;
