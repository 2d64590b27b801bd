/**
 * Packet sockets: frames of a network interface as they are.
 * @see packet(7)
 */
import { closeSync } from 'node:fs';
import {
  PACKET_ADD_MEMBERSHIP,
  PACKET_COPY_THRESH,
  PACKET_DROP_MEMBERSHIP,
  PACKET_FANOUT,
  PACKET_FANOUT_DATA,
  PACKET_FANOUT_EBPF,
  PACKET_FANOUT_FLAG_IGNORE_OUTGOING,
  PACKET_FANOUT_FLAG_UNIQUEID,
  PACKET_FANOUT_HASH,
  PACKET_IGNORE_OUTGOING,
  PACKET_MR_PROMISC,
  PACKET_MREQ,
  PACKET_QDISC_BYPASS,
  PACKET_RX_RING,
  PACKET_STATISTICS,
  PACKET_VERSION,
  PACKET_VNET_HDR,
  SOCKADDR_LL,
  TPACKET_REQ,
  TPACKET_STATS,
  TPACKET_V2,
} from '../uapi/packet.ts';
import { check, libc } from './libc.ts';

const AF_PACKET = 17;
const SOCK_RAW = 3;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;
const SOL_SOCKET = 1;
const SOL_PACKET = 263;
const SO_SNDBUF = 7;
const SO_RCVBUF = 8;
const SO_SNDBUFFORCE = 32;
const SO_RCVBUFFORCE = 33;
const ETH_P_ALL = 3;

const c = {
  socket: libc.func('socket', 'int', ['int', 'int', 'int']),
  bind: libc.func('bind', 'int', ['int', 'void *', 'uint']),
  setsockopt: libc.func('setsockopt', 'int', ['int', 'int', 'int', 'void *', 'uint']),
  getsockopt: libc.func('getsockopt', 'int', ['int', 'int', 'int', 'void *', 'void *']),
};

/** A ring of receive slots in memory that the kernel shares. */
export interface RingShape {
  /** bytes of a block: a multiple of the page size and of `frameBytes` */
  readonly blockBytes: number;
  readonly blocks: number;
  /** bytes of a slot, a multiple of 16 */
  readonly frameBytes: number;
  readonly frames: number;
}

function setOption(fd: number, name: number, value: number, what: string): void {
  check(c.setsockopt(fd, SOL_PACKET, name, new Int32Array([value]), 4), `setsockopt ${what}`);
}

/** As large as the system lets us: beyond its limit with the right to administer the network, else up to it. */
function setBuffer(fd: number, force: number, plain: number, bytes: number): void {
  const value = new Int32Array([bytes]);
  if (c.setsockopt(fd, SOL_SOCKET, force, value, 4) < 0)
    check(c.setsockopt(fd, SOL_SOCKET, plain, value, 4), 'setsockopt');
}

/**
 * A non-blocking packet socket that receives nothing yet, whose messages are a 10-byte virtio_net_hdr and a frame. The caller owns it.
 * Throws SysError: EPERM without CAP_NET_RAW.
 */
export function openPacketSocket(sendBytes: number): number {
  const fd = check(c.socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), 'socket AF_PACKET');
  try {
    setOption(fd, PACKET_VNET_HDR, 1, 'PACKET_VNET_HDR');
    setBuffer(fd, SO_SNDBUFFORCE, SO_SNDBUF, sendBytes);
    return fd;
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

/**
 * Gives the socket a receive ring, to be mapped as one file. Frames that do not fit a slot come in part there and whole by the
 * socket's queue, while that has less than `queueBytes`. Throws SysError: ENOMEM.
 */
export function setUpRing(fd: number, { blockBytes, blocks, frameBytes, frames }: RingShape, queueBytes: number): void {
  setOption(fd, PACKET_VERSION, TPACKET_V2, 'PACKET_VERSION');
  setOption(fd, PACKET_IGNORE_OUTGOING, 1, 'PACKET_IGNORE_OUTGOING');
  setOption(fd, PACKET_COPY_THRESH, 1, 'PACKET_COPY_THRESH');
  setBuffer(fd, SO_RCVBUFFORCE, SO_RCVBUF, queueBytes);
  const { off, size } = TPACKET_REQ;
  const request = new Uint32Array(size / 4);
  request[off.tp_block_size / 4] = blockBytes;
  request[off.tp_block_nr / 4] = blocks;
  request[off.tp_frame_size / 4] = frameBytes;
  request[off.tp_frame_nr / 4] = frames;
  check(c.setsockopt(fd, SOL_PACKET, PACKET_RX_RING, request, size), 'setsockopt PACKET_RX_RING');
}

/** Sends by interface `index` from now on, and with `receives` receives all that comes there. */
export function bindPacketSocket(fd: number, index: number, receives: boolean): void {
  const address = new DataView(new ArrayBuffer(SOCKADDR_LL.size));
  address.setUint16(SOCKADDR_LL.off.sll_family, AF_PACKET, true);
  address.setUint16(SOCKADDR_LL.off.sll_protocol, receives ? ETH_P_ALL : 0);
  address.setInt32(SOCKADDR_LL.off.sll_ifindex, index, true);
  check(c.bind(fd, address, address.byteLength), 'bind');
}

/** Has the interface take frames to all addresses for as long as the socket is open; or, after that, no longer. */
export function setPromiscuous(fd: number, index: number, on = true): void {
  const request = new DataView(new ArrayBuffer(PACKET_MREQ.size));
  request.setInt32(PACKET_MREQ.off.mr_ifindex, index, true);
  request.setUint16(PACKET_MREQ.off.mr_type, PACKET_MR_PROMISC, true);
  const [option, name] = on
    ? [PACKET_ADD_MEMBERSHIP, 'PACKET_ADD_MEMBERSHIP']
    : [PACKET_DROP_MEMBERSHIP, 'PACKET_DROP_MEMBERSHIP'];
  check(c.setsockopt(fd, SOL_PACKET, option, request, request.byteLength), `setsockopt ${name}`);
}

/** Frames do not wait behind the interface's queueing discipline: where its own queue is full they are lost. */
export function bypassQdisc(fd: number): void {
  setOption(fd, PACKET_QDISC_BYPASS, 1, 'PACKET_QDISC_BYPASS');
}

/**
 * Has the sockets, bound to one interface, share what it receives, by flows. Throws SysError: EINVAL where the interface is down.
 */
export function shareFlows(fds: readonly number[]): void {
  share(fds, PACKET_FANOUT_HASH | PACKET_FANOUT_FLAG_IGNORE_OUTGOING);
}

/**
 * As `shareFlows`, but by a program, which answers a socket's place in `fds`; all goes to the first until there is one. An interface
 * that goes down and comes up again changes nothing of that.
 */
export function shareByProgram(fds: readonly number[]): void {
  share(fds, PACKET_FANOUT_EBPF | PACKET_FANOUT_FLAG_IGNORE_OUTGOING);
}

/** Gives the sockets of `shareByProgram`, of which `fd` is one, their program; its descriptor may be closed then. Throws SysError. */
export function setFanoutProgram(fd: number, program: number): void {
  setOption(fd, PACKET_FANOUT_DATA, program, 'PACKET_FANOUT_DATA');
}

function share(fds: readonly number[], mode: number): void {
  setOption(fds[0], PACKET_FANOUT, (mode | PACKET_FANOUT_FLAG_UNIQUEID) << 16, 'PACKET_FANOUT');
  const group = new Int32Array(1);
  check(c.getsockopt(fds[0], SOL_PACKET, PACKET_FANOUT, group, new Uint32Array([4])), 'getsockopt PACKET_FANOUT');
  const id = group[0] & 0xffff;
  for (const fd of fds.slice(1)) setOption(fd, PACKET_FANOUT, (mode << 16) | id, 'PACKET_FANOUT');
}

const stats = new Uint32Array(TPACKET_STATS.size / 4);
const statsLen = new Uint32Array(1);

/** Frames that found no free slot since the last look. */
export function missedFrames(fd: number): number {
  statsLen[0] = TPACKET_STATS.size;
  check(c.getsockopt(fd, SOL_PACKET, PACKET_STATISTICS, stats, statsLen), 'getsockopt PACKET_STATISTICS');
  return stats[TPACKET_STATS.off.tp_drops / 4];
}
