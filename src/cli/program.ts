/**
 * What the programs that run a switch have in common: running it until it is told to stop.
 */
import { VhostSwitch } from '../control/vhost-switch.ts';
import { type CommandLine, helpText, parseCommandLine } from './command-line.ts';
import { runCommand, sayNotes } from './run-command.ts';
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

const notesTo =
  ({ log }: Output) =>
  (text: string) =>
    log('info', text);

/** Reads the arguments and does what they say; `run` is for those that start a switch. Sets the exit status. */
export function runProgram(argv: readonly string[], run: (options: CommandLine) => Promise<void>): Promise<void> {
  return runCommand({ name: 'vhost-switch', help: helpText, parse: parseCommandLine, run }, argv);
}

/** Starts a switch, calls `meanwhile`, and waits for a signal or the time's end. What `meanwhile` returns is called before the switch closes. */
export async function runSwitch(
  options: CommandLine,
  output: Output,
  meanwhile: (running: VhostSwitch) => () => void | Promise<void>,
): Promise<void> {
  sayNotes(options, notesTo(output));
  const stopped = untilStopped(options.seconds);
  const failed = Promise.withResolvers<never>();
  failed.promise.catch(() => {});
  const running = await VhostSwitch.start({
    ...options,
    uplinks: options.enabledPorts.map((port) => options.ports[port]),
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
  if (options.cuse !== undefined) output.log('info', `serving /dev/${options.cuse}`);
  const finish = meanwhile(running);
  try {
    await Promise.race([stopped, failed.promise]);
  } finally {
    await finish();
    await running.close();
  }
}
