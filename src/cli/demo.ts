#!/usr/bin/env node
/**
 * The demonstration: a switch on ./usvhost with two embedded guests that exchange frames through it, and a live table.
 * Real guests may connect to the same socket meanwhile. Takes the options of vhost-switch.
 */
import { Worker } from 'node:worker_threads';
import { ConfigError } from '../errors.ts';
import { workerUrl } from '../lcore/worker-url.ts';
import type { CommandLine } from './command-line.ts';
import type { DemoGuestSetup } from './demo-guest.ts';
import { LivePrinter, LiveTable } from './live-table.ts';
import { type Output, runProgram, runSwitch } from './program.ts';

const SOCKET = ['--dev-basename', 'usvhost'];
const MACS = ['52:54:00:00:00:01', '52:54:00:00:00:02'];
const FRAME_BYTES = 64;
const TABLE_MS = 1000;

function startGuest(setup: DemoGuestSetup, { log }: Output): Worker {
  const guest = new Worker(workerUrl(import.meta.url, './demo-guest'), { workerData: setup, trackUnmanagedFds: false });
  guest.on('error', (error) => log('error', `guest ${setup.mac}: ${error.message}`));
  return guest;
}

/** Resolves when the guest has disconnected. */
function stopGuest(guest: Worker): Promise<void> {
  return new Promise((resolve) => {
    guest.once('exit', () => resolve());
    guest.postMessage('stop');
    if (guest.threadId === -1) resolve();
  });
}

function run(options: CommandLine): Promise<void> {
  if (options.sockets.length === 0)
    throw new ConfigError('CONFIG_CONFLICT', '--vhost', "the demonstration's guests need a socket; use --vhost both", {
      value: 'cuse',
    });
  const printer = new LivePrinter(process.stdout);
  const output: Output = {
    say: (line) => printer.say(line),
    log: (level, text) => printer.say(`VHOST_CONFIG: ${level === 'info' ? '' : `${level}: `}${text}`),
  };
  return runSwitch(options, output, (running) => {
    const [path] = options.sockets;
    const guests = MACS.map((mac, i) => startGuest({ path, mac, peer: MACS[1 - i], size: FRAME_BYTES }, output));
    const table = new LiveTable();
    const timer = setInterval(() => printer.print(table.lines(running.devices)), TABLE_MS);
    return async () => {
      clearInterval(timer);
      await Promise.all(guests.map(stopGuest));
    };
  });
}

await runProgram([...SOCKET, ...process.argv.slice(2)], run);
