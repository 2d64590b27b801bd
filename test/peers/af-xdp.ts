/** Whether this machine can run tests of AF_XDP and of programs in the kernel; moves the calling thread into a network of its own. */
import { closeSync } from 'node:fs';
import { Steering } from '../../src/port/steering.ts';
import { openXdpSocket } from '../../src/sys/xdp-socket.ts';
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
  new Steering(1, 1).close();
}
