#!/usr/bin/env node
/**
 * The vhost-testpmd command: forwards packets between ports, or makes them, with DPDK's testpmd's prompt and output.
 */
import { closeSync, openSync, readSync } from 'node:fs';
import { ConfigError, SwitchError } from '../errors.ts';
import { MAC_ADDRESS } from '../port/text-values.ts';
import { ForwardEngine } from '../testpmd/forward-engine.ts';
import { runTestpmd } from '../testpmd/program.ts';
import { runCommand, sayNotes } from './run-command.ts';
import { parseTestpmd, type TestpmdCommandLine, testpmdHelp } from './testpmd-options.ts';
import { untilStopped } from './until-stopped.ts';

/** More than anybody writes by hand. */
const MAX_SCRIPT_BYTES = 2 ** 20;

const log = (text: string) => process.stderr.write(`testpmd: ${text}\n`);

/** From a file, or from a pipe. */
function readScript(name: string): { name: string; text: string } {
  const fd = openSync(name, 'r');
  try {
    const bytes = Buffer.alloc(MAX_SCRIPT_BYTES + 1);
    let filled = 0;
    for (let n = -1; n !== 0 && filled < bytes.length; filled += n)
      n = readSync(fd, bytes, filled, bytes.length - filled, null);
    if (filled > MAX_SCRIPT_BYTES) {
      throw new SwitchError('BAD_SCRIPT', `${name}: a file of commands has ${MAX_SCRIPT_BYTES} bytes at most`);
    }
    return { name, text: bytes.toString('utf8', 0, filled) };
  } finally {
    closeSync(fd);
  }
}

/** Adds what a file says of the peers of ports 0, 1, …, an address a line, for those that the command line says nothing of. */
function readPeers(name: string, peers: Map<number, string>, ports: number): void {
  const lines = readScript(name)
    .text.split('\n')
    .filter((line) => line.trim() !== '');
  lines.slice(0, ports).forEach((line, port) => {
    const mac = MAC_ADDRESS.parse(line.trim());
    if (mac === undefined)
      throw new ConfigError(
        'CONFIG_INVALID_VALUE',
        '--eth-peers-configfile',
        `${name}: Bad MAC address format on line ${port + 1}`,
      );
    if (!peers.has(port)) peers.set(port, mac);
  });
}

/** Opens the ports; undefined if the user has stopped waiting for a back end. */
async function openEngine(
  settings: TestpmdCommandLine,
  cpus: readonly (readonly number[])[],
  stopped: Promise<void>,
): Promise<ForwardEngine | undefined> {
  const opening = new AbortController();
  let opened = false;
  void stopped.then(() => {
    if (!opened) opening.abort();
  });
  try {
    const { vdevs, forward: config, topology } = settings;
    const { signal } = opening;
    return await ForwardEngine.open({
      ...{ vdevs, config, topology },
      ...{ cpus, onWait: log, signal },
    });
  } catch (error) {
    if (signalled(opening, error)) return undefined;
    throw error;
  } finally {
    opened = true;
  }
}

const signalled = ({ signal }: AbortController, error: unknown) =>
  signal.aborted && error instanceof SwitchError && error.code === 'DISCONNECTED';

async function run(settings: TestpmdCommandLine): Promise<void> {
  sayNotes(settings, log);
  const { cmdlineFile } = settings;
  const script = cmdlineFile === undefined ? undefined : readScript(cmdlineFile);
  const { ethPeersFile, forward, vdevs } = settings;
  if (ethPeersFile !== undefined) readPeers(ethPeersFile, forward.ethPeers, vdevs.length);
  const lcores =
    settings.cores?.workers ?? Array.from({ length: settings.forward.cores }, (_, lcore) => ({ lcore, cpus: [] }));
  const stopped = untilStopped(0);
  const cpus = lcores.map((one) => one.cpus);
  const engine = await openEngine(settings, cpus, stopped);
  if (engine === undefined) return;
  await runTestpmd(
    engine,
    { ...settings, script, lcores: lcores.map(({ lcore }) => lcore) },
    { input: process.stdin, output: process.stdout },
    stopped,
  );
}

await runCommand({ name: 'vhost-testpmd', help: testpmdHelp, parse: parseTestpmd, run }, process.argv.slice(2));
