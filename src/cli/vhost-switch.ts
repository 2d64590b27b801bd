#!/usr/bin/env node
/**
 * The vhost-switch command: reads its options, runs the switch until it is told to stop, and says what goes wrong.
 * Exit status: 0 done, 1 failure, 2 wrong usage.
 */
import { readFileSync } from 'node:fs';
import { VhostSwitch } from '../control/vhost-switch.ts';
import { ConfigError } from '../errors.ts';
import { type CommandLine, helpText, parseCommandLine } from './command-line.ts';
import { statsTable } from './stats-table.ts';
import { untilStopped } from './until-stopped.ts';

/** What setInterval can count, seconds. */
const MAX_INTERVAL_S = 2147483;

const say = (line: string) => process.stdout.write(`${line}\n`);
const log = (level: string, text: string) =>
  process.stderr.write(`VHOST_CONFIG: ${level === 'info' ? '' : `${level}: `}${text}\n`);

function version(): string {
  const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'));
  return `vhost-switch ${version}`;
}

/** Options without a meaning here and without an effect are said once, not silently swallowed. */
function sayNotes({ ignored, notes }: CommandLine): void {
  if (ignored.length > 0)
    log('info', `ignored: ${ignored.join(', ')} (no meaning here: no hugepages and no PCI drivers are needed)`);
  for (const note of notes) log('info', note);
}

async function run(options: CommandLine): Promise<void> {
  const failed = Promise.withResolvers<never>();
  const running = await VhostSwitch.start({
    ...options,
    lcore: options.cores?.worker.lcore ?? 0,
    cpus: options.cores?.worker.cpus ?? [],
    config: {
      learning: options.learning,
      vm2vm: options.vm2vm,
      macAgeing: options.macAgeing,
      macTableSize: options.macTableSize,
      macLimit: options.macLimit,
      maxPorts: options.maxDevices,
    },
    log,
    print: say,
    onFatal: failed.reject,
  });
  const { statsSeconds, seconds } = options;
  const printStats = () => process.stdout.write(statsTable(running.devices, process.stdout.isTTY));
  const every = Math.min(statsSeconds, MAX_INTERVAL_S) * 1000;
  const timer = statsSeconds > 0 ? setInterval(printStats, every) : undefined;
  for (const path of options.sockets) log('info', `listening on ${path}`);
  try {
    await Promise.race([untilStopped(seconds), failed.promise]);
  } finally {
    clearInterval(timer);
    await running.close();
  }
}

try {
  const options = parseCommandLine(process.argv.slice(2));
  if (options.help) process.stdout.write(helpText());
  else if (options.version) say(version());
  else {
    if (options.showVersion) say(version());
    sayNotes(options);
    await run(options);
  }
} catch (error) {
  const usage = error instanceof ConfigError;
  process.stderr.write(`vhost-switch: ${error instanceof Error ? error.message : error}\n`);
  if (usage) process.stderr.write("Try 'vhost-switch --help'.\n");
  process.exitCode = usage ? 2 : 1;
}
