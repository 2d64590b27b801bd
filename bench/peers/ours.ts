/** The switch of this repository, as it is published, on one polling lcore. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { PeerProcess } from '../../test/peers/process.ts';
import type { BenchPeer, BenchPeerOptions } from './peer.ts';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const START_TIMEOUT_MS = 10_000;

/** Our own switch, which also tells what it costs. */
export interface OwnPeer extends BenchPeer {
  /** ms from the last `start` to the moment both sockets were there */
  readonly startMs: number;
  /** Bytes resident beyond guest memory, now. */
  residentBytes(): number;
}

/** The peer. Frames go by destination address, with learning, as with OVS and the sample. `options`: of the switch. */
export function ownPeer(
  { core, dir }: BenchPeerOptions,
  options: readonly string[] = ['--poll', 'busy', '--mergeable', '1'],
): OwnPeer {
  const sockets: [string, string] = [join(dir, 'ours-a'), join(dir, 'ours-b')];
  const { version } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as { version: string };
  let child: PeerProcess | undefined;
  let startMs = 0;
  return {
    name: 'vhost-switch',
    version: `${version}, Node ${process.version}`,
    sockets,
    memory: 'no packet buffers',
    get startMs() {
      return startMs;
    },
    residentBytes() {
      return residentBytes(child?.pid ?? -1);
    },
    async start() {
      const from = performance.now();
      child = new PeerProcess({
        name: 'vhost-switch',
        command: process.execPath,
        args: [
          join(ROOT, 'dist/cli/vhost-switch.js'),
          ...['-l', String(core), '--', ...options],
          ...sockets.flatMap((socket) => ['--socket-file', socket]),
        ],
        cwd: dir,
      });
      try {
        const listening = () => sockets.every((socket) => existsSync(socket));
        await child.waitUntil('sockets', listening, START_TIMEOUT_MS);
      } catch (error) {
        await this.stop();
        throw error;
      }
      startMs = performance.now() - from;
    },
    async stop() {
      await child?.stop();
      child = undefined;
    },
  };
}

/** Guest memory is in memory files, which the kernel counts as shared memory: all else is ours. */
function residentBytes(pid: number): number {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  const kilobytes = (field: string) => Number(new RegExp(`^${field}:\\s*(\\d+) kB`, 'm').exec(status)?.[1]);
  return (kilobytes('RssAnon') + kilobytes('RssFile')) * 1024;
}
