/**
 * Packet sockets that share what one interface receives, by a program of ours.
 * @see packet(7), PACKET_FANOUT
 */
import { check, libc } from './libc.ts';

const SOL_PACKET = 263;
const PACKET_FANOUT = 18;
const PACKET_FANOUT_DATA = 22;
const PACKET_FANOUT_EBPF = 7;
const PACKET_FANOUT_FLAG_UNIQUEID = 0x2000;

const c = {
  setsockopt: libc.func('setsockopt', 'int', ['int', 'int', 'int', 'void *', 'uint']),
  getsockopt: libc.func('getsockopt', 'int', ['int', 'int', 'int', 'void *', 'void *']),
};

const setOption = (fd: number, name: number, value: number, what: string) =>
  check(c.setsockopt(fd, SOL_PACKET, name, Int32Array.of(value), 4), 'setsockopt', what);

/**
 * Makes a group of the sockets, which are bound to one interface that is up; what comes goes to the first until they have a program.
 * They are numbered in this order. Throws SysError.
 */
export function shareByProgram(fds: readonly number[]): void {
  const [first, ...others] = fds;
  setOption(first, PACKET_FANOUT, (PACKET_FANOUT_EBPF | PACKET_FANOUT_FLAG_UNIQUEID) << 16, 'PACKET_FANOUT');
  const group = new Int32Array(1);
  check(c.getsockopt(first, SOL_PACKET, PACKET_FANOUT, group, Uint32Array.of(4)), 'getsockopt', 'PACKET_FANOUT');
  const id = group[0] & 0xffff;
  for (const fd of others) setOption(fd, PACKET_FANOUT, (PACKET_FANOUT_EBPF << 16) | id, 'PACKET_FANOUT');
}

/** Gives the group of the socket `fd` its program, which stays with it when the descriptor is closed. Throws SysError. */
export function setFanoutProgram(fd: number, program: number): void {
  setOption(fd, PACKET_FANOUT_DATA, program, 'PACKET_FANOUT_DATA');
}
