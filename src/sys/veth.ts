/**
 * Virtual cables: pairs of interfaces, where what goes into one comes out of the other.
 * @see veth(4), rtnetlink(7)
 */
import { closeSync } from 'node:fs';
import { SysError } from '../errors.ts';
import {
  IFF_UP,
  IFINFOMSG,
  IFLA_IFNAME,
  IFLA_INFO_DATA,
  IFLA_INFO_KIND,
  IFLA_LINKINFO,
  IFLA_MTU,
  IFLA_NET_NS_FD,
  IFLA_NUM_RX_QUEUES,
  IFLA_NUM_TX_QUEUES,
  NLM_F_ACK,
  NLM_F_CREATE,
  NLM_F_EXCL,
  NLM_F_REQUEST,
  NLMSG_ERROR,
  NLMSGERR,
  NLMSGHDR,
  RTATTR,
  RTM_DELLINK,
  RTM_NEWLINK,
  VETH_INFO_PEER,
} from '../uapi/rtnetlink.ts';
import { check, libc } from './libc.ts';

const AF_NETLINK = 16;
const NETLINK_ROUTE = 0;
const SOCK_RAW = 3;
const SOCK_CLOEXEC = 0o2000000;
const ANSWER_BYTES = 4096;

const c = {
  socket: libc.func('socket', 'int', ['int', 'int', 'int']),
  send: libc.func('send', 'int64_t', ['int', 'void *', 'size_t', 'int']),
  recv: libc.func('recv', 'int64_t', ['int', 'void *', 'size_t', 'int']),
};

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

/** An attribute and what fills it up to a multiple of four. */
function attribute(type: number, ...values: readonly Buffer[]): Buffer {
  const body = Buffer.concat(values);
  const bytes = Buffer.alloc((RTATTR.size + body.length + 3) & ~3);
  bytes.writeUInt16LE(RTATTR.size + body.length, RTATTR.off.rta_len);
  bytes.writeUInt16LE(type, RTATTR.off.rta_type);
  body.copy(bytes, RTATTR.size);
  return bytes;
}

function linkHeader(index: number, flags: number, change: number): Buffer {
  const { off, size } = IFINFOMSG;
  const bytes = Buffer.alloc(size);
  bytes.writeInt32LE(index, off.ifi_index);
  bytes.writeUInt32LE(flags, off.ifi_flags);
  bytes.writeUInt32LE(change, off.ifi_change);
  return bytes;
}

/** Has the kernel make, change or remove an interface of the calling thread's namespace. Throws SysError. */
function request(type: number, what: string, flags: number, ...body: readonly Buffer[]): void {
  const { off, size } = NLMSGHDR;
  const message = Buffer.concat([Buffer.alloc(size), ...body]);
  message.writeUInt32LE(message.length, off.nlmsg_len);
  message.writeUInt16LE(type, off.nlmsg_type);
  message.writeUInt16LE(NLM_F_REQUEST | NLM_F_ACK | flags, off.nlmsg_flags);
  const fd = check(c.socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE), 'socket', 'AF_NETLINK');
  try {
    check(Number(c.send(fd, message, message.length, 0)), 'send', 'AF_NETLINK');
    const answer = Buffer.alloc(ANSWER_BYTES);
    check(Number(c.recv(fd, answer, answer.length, 0)), 'recv', 'AF_NETLINK');
    const error = answer.readInt32LE(size + NLMSGERR.off.error);
    if (answer.readUInt16LE(off.nlmsg_type) === NLMSG_ERROR && error < 0) throw new SysError('rtnetlink', -error, what);
  } finally {
    closeSync(fd);
  }
}

/** Two ends that are to be. */
export interface VethPlan {
  /** in the calling thread's namespace */
  readonly near: string;
  /** in the namespace open as `farNetns` */
  readonly far: string;
  readonly farNetns: number;
  readonly mtu: number;
}

/** Makes a cable of one queue. Both ends are down. It goes with either end's namespace. Throws SysError: EEXIST, EPERM. */
export function addVethPair({ near, far, farNetns, mtu }: VethPlan): void {
  const end = (name: string) => [
    attribute(IFLA_IFNAME, Buffer.from(`${name}\0`)),
    attribute(IFLA_MTU, u32(mtu)),
    attribute(IFLA_NUM_TX_QUEUES, u32(1)),
    attribute(IFLA_NUM_RX_QUEUES, u32(1)),
  ];
  const peer = attribute(VETH_INFO_PEER, linkHeader(0, 0, 0), ...end(far), attribute(IFLA_NET_NS_FD, u32(farNetns)));
  const info = attribute(
    IFLA_LINKINFO,
    attribute(IFLA_INFO_KIND, Buffer.from('veth\0')),
    attribute(IFLA_INFO_DATA, peer),
  );
  request(RTM_NEWLINK, `veth ${near}`, NLM_F_CREATE | NLM_F_EXCL, linkHeader(0, 0, 0), ...end(near), info);
}

/** Sets an interface of the calling thread's namespace up. Throws SysError. */
export function setLinkUp(index: number): void {
  request(RTM_NEWLINK, `up ${index}`, 0, linkHeader(index, IFF_UP, IFF_UP));
}

/** Removes an interface of the calling thread's namespace; of a cable both ends go. Throws SysError (ENODEV). */
export function removeLink(index: number): void {
  request(RTM_DELLINK, `remove ${index}`, 0, linkHeader(index, 0, 0));
}
