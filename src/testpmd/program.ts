/**
 * testpmd from the banner to the last line: commands of a file first, then the prompt, or forwarding until it is told to stop.
 */
import { SwitchError } from '../errors.ts';
import { runLine } from './commands.ts';
import type { Engine } from './engine.ts';
import { runPrompt, Screen, type Terminal } from './prompt.ts';
import { Session, type SessionOptions } from './session.ts';

export interface ProgramOptions extends Omit<SessionOptions, 'say' | 'now'> {
  /** with a prompt */
  readonly interactive: boolean;
  /** forward before the prompt comes; without a prompt it always does */
  readonly autoStart: boolean;
  /** bursts to send first, on every port */
  readonly txFirst: number;
  /** seconds between two statistics while there is no prompt; 0 = none */
  readonly statsPeriod: number;
  /** commands to do first, and the name of the file they are from */
  readonly script?: { readonly name: string; readonly text: string } | undefined;
}

const CLEAR_SCREEN = '\x1b[2J\x1b[1;1H';

/**
 * Runs until the end of what the user wants, or until `stopped`; the engine is closed at any rate. Throws LCORE_STOPPED if without a
 * prompt packets can no longer be forwarded, and what the engine throws otherwise than for a command, which says it.
 */
export async function runTestpmd(
  engine: Engine,
  options: ProgramOptions,
  terminal: Terminal,
  stopped: Promise<unknown>,
): Promise<void> {
  const screen = new Screen(terminal.output);
  const session = new Session(engine, { ...options, say: screen.say });
  try {
    if (options.interactive) screen.say('Interactive-mode selected');
    session.banner();
    await runScript(session, options.script);
    if (!session.quitting) {
      if (options.interactive) {
        if (options.autoStart) await session.start(options.txFirst);
        await runPrompt(session, screen, terminal, stopped);
      } else await forward(session, screen, options, terminal, stopped);
    }
  } catch (error) {
    await engine.close();
    throw error;
  }
  await session.close();
}

async function runScript(session: Session, script: ProgramOptions['script']): Promise<void> {
  if (script === undefined) return;
  const lines = script.text.split('\n');
  for (let at = 0; at < lines.length && !session.quitting; at++) {
    await runLine(session, lines[at], `${script.name}:${at + 1}: `);
  }
  session.say(`Read CLI commands from ${script.name}`);
}

/** Forwards until Enter, a signal, or, without statistics, the end of the input. */
async function forward(
  session: Session,
  screen: Screen,
  { txFirst, statsPeriod }: ProgramOptions,
  { input }: Terminal,
  stopped: Promise<unknown>,
): Promise<void> {
  session.say('No commandline core given, start packet forwarding');
  const failed = Promise.withResolvers<never>();
  // it may fail while nobody waits for it yet
  failed.promise.catch(() => {});
  session.engine.onFailure((reason) => failed.reject(new SwitchError('LCORE_STOPPED', reason)));
  await session.start(txFirst);
  const { promise: enter, resolve } = Promise.withResolvers<void>();
  input.once('data', () => resolve());
  if (statsPeriod === 0) {
    session.say('Press enter to exit');
    input.once('end', resolve);
  }
  const show = () => {
    session.say(`${screen.isTerminal ? CLEAR_SCREEN : ''}\nPort statistics ====================================`);
    session.showPortStats('all');
  };
  const timer = statsPeriod > 0 ? setInterval(show, statsPeriod * 1000) : undefined;
  try {
    await Promise.race([enter, stopped, failed.promise]);
  } finally {
    clearInterval(timer);
    input.pause();
  }
}
