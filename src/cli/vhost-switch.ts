#!/usr/bin/env node
/**
 * The vhost-switch command: runs a switch until it is told to stop, and prints the sample program's statistics; or, as
 * `vhost-switch doctor`, says what is in a switch's or guest's way.
 */
import type { CommandLine } from './command-line.ts';
import { runProgram, runSwitch, TERMINAL } from './program.ts';
import { statsTable } from './stats-table.ts';

/** What setInterval can count, seconds. */
const MAX_INTERVAL_S = 2147483;

function run(options: CommandLine): Promise<void> {
  return runSwitch(options, TERMINAL, (running) => {
    const everyMs = Math.min(options.statsSeconds, MAX_INTERVAL_S) * 1000;
    const print = () => {
      const { devices, uplinks, lcores } = running;
      process.stdout.write(statsTable(devices, process.stdout.isTTY, uplinks, lcores));
    };
    const timer = everyMs > 0 ? setInterval(print, everyMs) : undefined;
    return () => clearInterval(timer);
  });
}

const [subcommand, ...words] = process.argv.slice(2);
// a switch that is started has no use for it
if (subcommand === 'doctor') await (await import('./doctor.ts')).runDoctor(words);
else await runProgram(process.argv.slice(2), run);
