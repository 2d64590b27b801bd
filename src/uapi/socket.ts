/**
 * The structs of Unix sockets that carry file descriptors, as the 64-bit C library lays them out.
 * @see unix(7), recvmsg(2), cmsg(3)
 */
import { layout } from './layout.ts';

/** sun_path holds this many bytes, its final NUL included */
export const SUN_PATH_LEN = 108;
export const SOCKADDR_UN = layout('sockaddr_un', { sun_family: 'u16', sun_path: ['u8', SUN_PATH_LEN] });
export const IOVEC = layout('iovec', { iov_base: 'u64', iov_len: 'u64' });
export const MSGHDR = layout('msghdr', {
  msg_name: 'u64',
  msg_namelen: 'u32',
  msg_iov: 'u64',
  msg_iovlen: 'u64',
  msg_control: 'u64',
  msg_controllen: 'u64',
  msg_flags: 's32',
});
/** In front of each piece of ancillary data, which begins at a multiple of 8 bytes. */
export const CMSGHDR = layout('cmsghdr', { cmsg_len: 'u64', cmsg_level: 's32', cmsg_type: 's32' });
