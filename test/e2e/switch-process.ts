/** The switch as its users run it: a process of its own in a folder of its own, watched by what it prints. */
import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { makeTempDir, PeerProcess, removeTempDir, waitUntil } from '../peers/process.ts';

export const MAIN = fileURLToPath(new URL('../../src/cli/vhost-switch.ts', import.meta.url));
export const DEMO = fileURLToPath(new URL('../../src/cli/demo.ts', import.meta.url));

/** Time for everything that takes milliseconds, on a machine that is busy with guests under emulation. */
const PATIENCE_MS = 10_000;
/** Four lcores on a busy machine with two CPUs begin slowly. */
const START_MS = 30_000;
/** USER_HZ: the unit of times in /proc/PID/stat. */
const TICKS_PER_SECOND = 100;

/** How a program that does not stay ended. */
export interface Outcome {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs the switch to its end, for command lines that do not start one. */
export function runSwitch(args: readonly string[], cwd?: string): Outcome {
  const options = { encoding: 'utf8', timeout: 20_000, ...(cwd === undefined ? {} : { cwd }) } as const;
  const { status, stdout, stderr } = spawnSync(process.execPath, [MAIN, ...args], options);
  return { status, stdout, stderr };
}

/** How to start a switch. */
export interface SwitchProcessOptions {
  /** The program's file. Default: the switch. */
  readonly main?: string;
  /** Arguments for Node, before the file. */
  readonly node?: readonly string[];
  /** A line that says it is up. Default: listening on ‹something›. */
  readonly up?: RegExp;
  /** The folder to run in. Default: a new one, removed when the switch stops. */
  readonly dir?: string;
  /** All arguments, in place of `--socket-file` and `args`. */
  readonly wholeLine?: boolean;
}

export class SwitchProcess {
  /** The folder it runs in. */
  readonly dir: string;
  /** Its socket, unless `wholeLine` says otherwise. */
  readonly socket: string;
  readonly #process: PeerProcess;
  readonly #ownsDir: boolean;

  private constructor(args: readonly string[], options: SwitchProcessOptions) {
    const { main = MAIN, node = [], dir, wholeLine = false } = options;
    this.#ownsDir = dir === undefined;
    this.dir = dir ?? makeTempDir('switch');
    this.socket = this.path('sock');
    const line = wholeLine ? args : ['--socket-file', this.socket, ...args];
    this.#process = new PeerProcess({
      name: 'switch',
      command: process.execPath,
      args: [...node, main, ...line],
      cwd: this.dir,
    });
  }

  /** Starts it, and waits until it listens. */
  static async start(args: readonly string[] = [], options: SwitchProcessOptions = {}): Promise<SwitchProcess> {
    const started = new SwitchProcess(args, options);
    try {
      await started.line(options.up ?? /listening on /, 0, START_MS);
      return started;
    } catch (error) {
      await started.kill();
      throw error;
    }
  }

  get pid(): number {
    return this.#process.pid;
  }

  /** A file in its folder. */
  path(name: string): string {
    return join(this.dir, name);
  }

  /** All that it has printed on both streams, as far as it is kept. */
  get output(): string {
    return this.#process.outputSince(0);
  }

  get lines(): string[] {
    return this.output.split('\n');
  }

  /** A mark for {@link line} and {@link since}: what is printed from now on. */
  get mark(): number {
    return this.#process.outputLen;
  }

  since(mark: number): string {
    return this.#process.outputSince(mark);
  }

  /** Waits for a whole line that matches, printed after `mark`. */
  async line(pattern: RegExp, mark = 0, ms = PATIENCE_MS): Promise<string> {
    let found: string | undefined;
    const look = () => {
      const printed = this.#process.outputSince(mark).split('\n').slice(0, -1);
      found = printed.find((line) => pattern.test(line));
      return found !== undefined;
    };
    await this.#process.waitUntil(`a line like ${pattern}`, look, ms);
    return found as string;
  }

  /** Waits for a condition, failing early when the switch ends. */
  until(what: string, condition: () => boolean | Promise<boolean>, ms = PATIENCE_MS): Promise<void> {
    return this.#process.waitUntil(what, condition, ms);
  }

  get running(): boolean {
    return this.#process.endedHow === undefined;
  }

  signal(signal: NodeJS.Signals): void {
    this.#process.signal(signal);
  }

  /** Waits for its end, and says how: `ended with status 0`, or by which signal. */
  async ended(ms = PATIENCE_MS): Promise<string> {
    await waitUntil('the end of the switch', () => !this.running, ms, { details: () => this.#process.lastLines() });
    return this.#process.ended;
  }

  /** Stops it as a user does. @returns how it ended */
  async stop(signal: NodeJS.Signals = 'SIGINT'): Promise<string> {
    this.signal(signal);
    try {
      return await this.ended();
    } finally {
      await this.kill();
    }
  }

  /** Ends it by force if it still runs, and removes its folder. Any number of times. */
  async kill(): Promise<void> {
    this.#process.killNow();
    await this.#process.ended;
    if (this.#ownsDir) removeTempDir(this.dir);
  }

  /** Processor time it has used so far, ms. */
  cpuMs(): number {
    const stat = readFileSync(`/proc/${this.pid}/stat`, 'utf8');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    const [utime, stime] = [Number(fields[11]), Number(fields[12])];
    return ((utime + stime) * 1000) / TICKS_PER_SECOND;
  }

  /** File descriptors it has open. */
  get openFds(): number {
    return readdirSync(`/proc/${this.pid}/fd`).length;
  }

  /** Mappings of files that guests share: all others are the program's own. */
  get mappedFiles(): number {
    const maps = readFileSync(`/proc/${this.pid}/maps`, 'utf8').split('\n');
    return maps.filter((line) => / \/(memfd:|dev\/shm\/|anon_hugepage)/.test(line)).length;
  }

  /** Mappings of all kinds. */
  get mappings(): number {
    return readFileSync(`/proc/${this.pid}/maps`, 'utf8').split('\n').length;
  }
}
