/**
 * How a command of this package begins and ends: its arguments, its help, its version, and its exit status.
 * Exit status: 0 done, 1 failure, 2 wrong usage.
 */
import { readFileSync } from 'node:fs';
import { ConfigError } from '../errors.ts';

/** What every command line says. */
interface CommonSettings {
  /** Print the help and exit. */
  readonly help: boolean;
  /** Print the version and exit. */
  readonly version: boolean;
  /** Print the version at start. */
  readonly showVersion: boolean;
}

/** A command. */
export interface CommandProgram<Settings extends CommonSettings> {
  /** what it calls itself */
  readonly name: string;
  readonly help: () => string;
  /** Throws ConfigError for what makes no sense. */
  readonly parse: (argv: readonly string[]) => Settings;
  readonly run: (settings: Settings) => Promise<void>;
}

function version(): string {
  const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'));
  return `vhost-switch ${version}\n`;
}

/** Reads the arguments and does what they say. Sets the exit status; a failure is told in one sentence. */
export async function runCommand<Settings extends CommonSettings>(
  { name, help, parse, run }: CommandProgram<Settings>,
  argv: readonly string[],
): Promise<void> {
  // Nobody reads any more, or the disk is full: no reason to take the guests' network away.
  for (const stream of [process.stdout, process.stderr]) stream.on('error', () => {});
  try {
    const settings = parse(argv);
    if (settings.help) process.stdout.write(help());
    else if (settings.version) process.stdout.write(version());
    else {
      if (settings.showVersion) process.stdout.write(version());
      await run(settings);
    }
  } catch (error) {
    const usage = error instanceof ConfigError;
    process.stderr.write(`${name}: ${error instanceof Error ? error.message : error}\n`);
    if (usage) process.stderr.write(`Try '${name} --help'.\n`);
    process.exitCode = usage ? 2 : 1;
  }
}

/** Options without a meaning here, and those without an effect, are said once. */
export function sayNotes(
  { ignored, notes }: { readonly ignored: readonly string[]; readonly notes: readonly string[] },
  say: (text: string) => void,
): void {
  if (ignored.length > 0)
    say(`ignored: ${ignored.join(', ')} (no meaning here: no hugepages and no PCI drivers are needed)`);
  for (const note of notes) say(note);
}
