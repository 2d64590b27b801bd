/** Whether this machine can run tests of AF_XDP and of programs in the kernel; moves the calling thread into a network of its own. */
import { closeSync } from 'node:fs';
import { fanoutProgram, xdpProgram } from '../../src/net/steering-program.ts';
import { Steering } from '../../src/port/steering.ts';
import { BpfMap, loadProgram } from '../../src/sys/bpf.ts';
import { openXdpSocket } from '../../src/sys/xdp-socket.ts';
import { BPF_MAP_TYPE_XSKMAP, BPF_PROG_TYPE_SOCKET_FILTER, BPF_PROG_TYPE_XDP } from '../../src/uapi/bpf.ts';
import { ensurePeers } from './packages.ts';
import { enterOwnNetwork } from './veth.ts';

/** What the machine lacks for tests of AF_XDP, to be told as left out; or false. */
export async function probeXdp(): Promise<string | false> {
  const [leftOut] = (await ensurePeers(['netns'])).leftOut;
  const why = leftOut?.why ?? attempt(() => closeSync(openXdpSocket())) ?? attempt(tryBpf);
  return why === undefined ? false : `left out: AF_XDP: ${why}`;
}

/** The same, and the calling thread enters a network of its own. */
export async function enterXdpNetwork(): Promise<string | false> {
  const lacking = await probeXdp();
  if (lacking !== false) return lacking;
  const why = enterOwnNetwork();
  return why === undefined ? false : `left out: AF_XDP: ${why}`;
}

function attempt(use: () => void): string | undefined {
  try {
    use();
    return undefined;
  } catch (error) {
    return (error as Error).message;
  }
}

function tryBpf(): void {
  const steering = new Steering(1, 1);
  const sockets = new BpfMap(BPF_MAP_TYPE_XSKMAP, 4, 4, 1, 'probe');
  try {
    for (const [type, program] of [
      [BPF_PROG_TYPE_SOCKET_FILTER, fanoutProgram(steering.maps)],
      [BPF_PROG_TYPE_XDP, xdpProgram(sockets.fd, 1, steering.maps)],
    ] as const)
      closeSync(loadProgram(type, program, 'probe'));
  } finally {
    sockets.close();
    steering.close();
  }
}
