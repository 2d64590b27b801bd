/**
 * How network interfaces are set, as ethtool(8) shows it.
 */
import { closeSync } from 'node:fs';
import { ETH_FLAG_RXVLAN, ETHTOOL_GFLAGS, ETHTOOL_VALUE, IFNAMSIZ, IFREQ, SIOCETHTOOL } from '../uapi/ethtool.ts';
import { addressOf, check, errno, libc } from './libc.ts';

const AF_INET = 2;
const SOCK_DGRAM = 2;
const SOCK_CLOEXEC = 0o2000000;
const EOPNOTSUPP = 95;

const c = {
  socket: libc.func('socket', 'int', ['int', 'int', 'int']),
  ioctl: libc.func('ioctl', 'int', ['int', 'ulong', 'void *']),
};

/**
 * True if the interface, of the calling thread's network namespace, takes VLAN tags off the frames it receives. Throws SysError (ENODEV).
 */
export function takesTagsOff(name: string): boolean {
  const value = Uint32Array.of(ETHTOOL_GFLAGS, 0);
  const request = new DataView(new ArrayBuffer(IFREQ.size));
  new Uint8Array(request.buffer).set(Buffer.from(name).subarray(0, IFNAMSIZ - 1), IFREQ.off.ifr_name);
  request.setBigUint64(IFREQ.off.ifr_data, addressOf(value), true);
  const fd = check(c.socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), 'socket');
  try {
    const status = c.ioctl(fd, SIOCETHTOOL, request);
    if (status < 0 && errno() === EOPNOTSUPP) return false;
    check(status, 'SIOCETHTOOL', name);
    return (value[ETHTOOL_VALUE.off.data / 4] & ETH_FLAG_RXVLAN) !== 0;
  } finally {
    closeSync(fd);
  }
}
