/**
 * The test command: sees to the real peers that the tests use, runs every test file, and says plainly what was left out.
 *
 *   npm test                all
 *   npm test -- unit e2e    the files whose path contains one of these words
 */
import { spawn } from 'node:child_process';
import { globSync } from 'node:fs';
import { probeXdp } from './peers/af-xdp.ts';
import { ensurePeers } from './peers/packages.ts';

// where Debian has what configures networks and makes file systems; not every user's PATH names it
process.env.PATH = `${process.env.PATH}:/usr/local/sbin:/usr/sbin:/sbin`;

const words = process.argv.slice(2);
const files = globSync('test/**/*.test.ts')
  .filter((file) => words.length === 0 || words.some((word) => file.includes(word)))
  .sort();
if (files.length === 0) {
  process.stderr.write(`no test file's path contains ${words.join(' or ')}\n`);
  process.exit(2);
}

const { leftOut } = await ensurePeers(['qemu', 'dpdk', 'machine']);
const noXdp = await probeXdp();
// One file at a time: guests under software emulation need both cores.
const args = ['--test', '--test-concurrency=1', '--test-timeout=300000', ...files];
const runner = spawn(process.execPath, args, { stdio: 'inherit' });
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => runner.kill(signal));
runner.on('exit', (code) => {
  for (const { peer, why } of leftOut) process.stdout.write(`left out: every test with ${peer}: ${why}\n`);
  if (noXdp !== false) process.stdout.write(`${noXdp}\n`);
  process.exitCode = code ?? 1;
});
