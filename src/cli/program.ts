/**
 * What the programs have in common: running a switch until it is told to stop, and how a program ends.
 * Exit status: 0 done, 1 failure, 2 wrong usage.
 */
import { readFileSync } from 'node:fs';
import { VhostSwitch } from '../control/vhost-switch.ts';
import { ConfigError } from '../errors.ts';
import { type CommandLine, helpText, parseCommandLine } from './command-line.ts';
import { untilStopped } from './until-stopped.ts';

/** Where lines go: what the original program prints, and what happens with sockets and devices. */
export interface Output {
  say(line: string): void;
  log(level: string, text: string): void;
}

/** Lines to standard output, logs to standard error. */
export const TERMINAL: Output = {
  say: (line) => process.stdout.write(`${line}\n`),
  log: (level, text) => process.stderr.write(`VHOST_CONFIG: ${level === 'info' ? '' : `${level}: `}${text}\n`),
};

function version(): string {
  const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'));
  return `vhost-switch ${version}`;
}

/** Options without a meaning here, and those without an effect, are said once. */
function sayNotes({ ignored, notes }: CommandLine, { log }: Output): void {
  if (ignored.length > 0)
    log('info', `ignored: ${ignored.join(', ')} (no meaning here: no hugepages and no PCI drivers are needed)`);
  for (const note of notes) log('info', note);
}

/**
 * Reads the arguments and does what they say; `run` is for those that start a switch. Sets the exit status; a failure is told in
 * one sentence.
 */
export async function runProgram(argv: readonly string[], run: (options: CommandLine) => Promise<void>): Promise<void> {
  // Nobody reads any more, or the disk is full: no reason to take the guests' network away.
  for (const stream of [process.stdout, process.stderr]) stream.on('error', () => {});
  try {
    const options = parseCommandLine(argv);
    if (options.help) process.stdout.write(helpText());
    else if (options.version) TERMINAL.say(version());
    else {
      if (options.showVersion) TERMINAL.say(version());
      await run(options);
    }
  } catch (error) {
    const usage = error instanceof ConfigError;
    process.stderr.write(`vhost-switch: ${error instanceof Error ? error.message : error}\n`);
    if (usage) process.stderr.write("Try 'vhost-switch --help'.\n");
    process.exitCode = usage ? 2 : 1;
  }
}

/** Starts a switch, calls `meanwhile`, and waits for a signal or the time's end. What `meanwhile` returns is called before the switch closes. */
export async function runSwitch(
  options: CommandLine,
  output: Output,
  meanwhile: (running: VhostSwitch) => () => void | Promise<void>,
): Promise<void> {
  sayNotes(options, output);
  const stopped = untilStopped(options.seconds);
  const failed = Promise.withResolvers<never>();
  failed.promise.catch(() => {});
  const running = await VhostSwitch.start({
    ...options,
    lcores: options.cores?.workers ?? [{ lcore: 0, cpus: [] }],
    config: {
      learning: options.learning,
      vm2vm: options.vm2vm,
      ...(options.vlan === undefined ? {} : { vlan: options.vlan }),
      ...(options.rxRetry === undefined ? {} : { rxRetry: options.rxRetry }),
      macAgeing: options.macAgeing,
      macTableSize: options.macTableSize,
      macLimit: options.macLimit,
      maxPorts: options.maxDevices,
    },
    log: output.log,
    print: output.say,
    onFatal: failed.reject,
  });
  // a client tells itself what it waits for
  if (!options.client) for (const path of options.sockets) output.log('info', `listening on ${path}`);
  const finish = meanwhile(running);
  try {
    await Promise.race([stopped, failed.promise]);
  } finally {
    await finish();
    await running.close();
  }
}
