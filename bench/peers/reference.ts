/**
 * The switch's own algorithm as a minimal C program (reference/switch.c): what the machine allows. Built for this CPU where it is started.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { packageVersion } from '../../test/peers/packages.ts';
import { PeerProcess, runToEnd } from '../../test/peers/process.ts';
import type { BenchPeer, BenchPeerOptions } from './peer.ts';

const SOURCE = fileURLToPath(new URL('../reference/switch.c', import.meta.url));
const BUILD_TIMEOUT_MS = 60_000;
const START_TIMEOUT_MS = 10_000;

/** The peer; needs the packages of peer "gcc". */
export function referencePeer({ core, dir }: BenchPeerOptions): BenchPeer {
  const sockets: [string, string] = [join(dir, 'reference-a'), join(dir, 'reference-b')];
  const program = join(dir, 'reference');
  let child: PeerProcess | undefined;
  return {
    name: 'C reference',
    version: `gcc ${packageVersion('gcc') ?? 'unknown'} -O3 -march=native`,
    sockets,
    memory: 'no packet buffers',
    async start() {
      const args = ['-O3', '-march=native', '-pthread', '-o', program, SOURCE];
      if (!existsSync(program)) await runToEnd({ name: 'gcc', command: 'gcc', args, cwd: dir }, BUILD_TIMEOUT_MS);
      child = new PeerProcess({ name: 'reference', command: program, args: [String(core), ...sockets], cwd: dir });
      try {
        await child.waitUntil('sockets', () => sockets.every((socket) => existsSync(socket)), START_TIMEOUT_MS);
      } catch (error) {
        await this.stop();
        throw error;
      }
    },
    async stop() {
      await child?.stop();
      child = undefined;
    },
  };
}
