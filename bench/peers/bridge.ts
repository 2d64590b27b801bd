/**
 * A Linux bridge with a tap device for each of two guests, in a network namespace of its own: it is gone with the process that
 * holds the namespace, and the system's own network is left alone.
 */
import { accessSync, constants } from 'node:fs';
import { release } from 'node:os';
import { PeerProcess, runToEnd } from '../../test/peers/process.ts';

const TAPS = ['tap-a', 'tap-b'] as const;
const DEADLINE_MS = 10_000;
const READY = 'bridge is up';
/** Without spanning tree ports forward at once. */
const SET_UP = [
  'set -e',
  'ip link add br0 type bridge stp_state 0',
  ...TAPS.flatMap((tap) => [
    `ip tuntap add dev ${tap} mode tap`,
    `ip link set ${tap} master br0`,
    `ip link set ${tap} up`,
  ]),
  'ip link set br0 up',
].join('\n');

/** The bridge. One object may be started and stopped again. */
export interface Bridge {
  readonly name: string;
  readonly version: string;
  start(): Promise<void>;
  /** Guests must be gone by then. May be called at any time. */
  stop(): Promise<void>;
  /** What QEMU's command line must begin with. */
  readonly launcher: readonly string[];
  /** QEMU's `-netdev` for guest `i`, named n0. */
  netdev(i: number): string;
}

/** Why a bridge cannot be had here, in the words of what failed; undefined if it can. `vhost`: with the kernel's vhost-net. */
export async function bridgeMissing(vhost: boolean): Promise<string | undefined> {
  if (process.getuid?.() !== 0) return 'only root can make a network namespace';
  try {
    if (vhost) accessSync('/dev/vhost-net', constants.R_OK | constants.W_OK);
    await runToEnd({ name: 'trial bridge', command: 'unshare', args: ['--net', 'sh', '-c', SET_UP] }, DEADLINE_MS);
    return undefined;
  } catch (error) {
    return (error as Error).message;
  }
}

/** `vhost`: frames are moved by the kernel's vhost-net, not by QEMU. */
export function bridge(vhost: boolean): Bridge {
  let holder: PeerProcess | undefined;
  return {
    name: `Linux bridge with taps, ${vhost ? 'vhost-net' : 'frames moved by QEMU'}`,
    version: release(),
    async start() {
      // each of these programs replaces itself by the next: the namespace is that of the process's id
      const script = `${SET_UP}\necho '${READY}'\nexec sleep infinity`;
      holder = new PeerProcess({ name: 'bridge', command: 'unshare', args: ['--net', 'sh', '-c', script] });
      const up = holder;
      try {
        await up.waitUntil('set-up', () => up.outputSince(0).includes(READY), DEADLINE_MS);
      } catch (error) {
        await this.stop();
        throw error;
      }
    },
    async stop() {
      await holder?.stop();
      holder = undefined;
    },
    get launcher() {
      if (holder === undefined) throw new Error('the bridge is not up');
      return ['nsenter', `--net=/proc/${holder.pid}/ns/net`];
    },
    netdev(i) {
      return `tap,id=n0,ifname=${TAPS[i]},script=no,downscript=no,vhost=${vhost ? 'on' : 'off'}`;
    },
  };
}
