/**
 * Processes and temporary folders of the test harness: every peer is started here, and none outlives the harness.
 * Not a general process library: it knows how to start, watch and end one program.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

/** By how much longer everything takes here: the test machine says so, whose processor is emulated. */
const SLOWNESS = Number(process.env.TEST_SLOWNESS ?? 1);

/** How much of a program's output is kept, in characters. */
const OUTPUT_KEPT = 256 * 1024;

const running = new Set<PeerProcess>();
const folders = new Set<string>();
const undoers = new Set<() => void>();

function cleanUp(): void {
  for (const peer of running) peer.killNow();
  for (const undo of undoers) undo();
  for (const folder of folders) rmSync(folder, { recursive: true, force: true });
}

process.on('exit', cleanUp);
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.once(signal, () => {
    cleanUp();
    process.kill(process.pid, signal); // the handler is gone by now: the signal has its usual effect
  });
}

/** A new folder under the system's temporary folder, removed by {@link removeTempDir} or when the harness ends. */
export function makeTempDir(prefix: string): string {
  const folder = mkdtempSync(join(tmpdir(), `vhost-switch-${prefix}-`));
  folders.add(folder);
  return folder;
}

/** Removes a folder made by {@link makeTempDir}. Removing it twice is harmless. */
export function removeTempDir(folder: string): void {
  if (folders.delete(folder)) rmSync(folder, { recursive: true, force: true });
}

/** Has something undone when the harness ends, also by a signal. Synchronous; returns a function that takes it back. */
export function undoAtEnd(undo: () => void): () => void {
  undoers.add(undo);
  return () => undoers.delete(undo);
}

/** How to start a program. */
export interface PeerProcessOptions {
  /** What messages call it. */
  name: string;
  command: string;
  args: readonly string[];
  /** Added to the harness's own environment. */
  env?: Record<string, string>;
  cwd?: string;
  /** Scheduling niceness, 0–19. Default 0. */
  nice?: number;
  /** CPUs it may run on, as `taskset -c` takes them. Default: all of the harness's. */
  cpus?: string;
  /** Output unbuffered, for programs that print into a pipe with stdio. Default false. */
  unbuffered?: boolean;
}

/** Text that grows, of which the last part is kept. */
class Tail {
  text = '';
  private dropped = 0;

  add(data: string): void {
    this.text += data;
    if (this.text.length <= 2 * OUTPUT_KEPT) return;
    this.dropped += this.text.length - OUTPUT_KEPT;
    this.text = this.text.slice(-OUTPUT_KEPT);
  }

  get length(): number {
    return this.dropped + this.text.length;
  }

  since(mark: number): string {
    return this.text.slice(Math.max(0, mark - this.dropped));
  }
}

/** A running program whose output is collected. It dies with the harness, even when that is killed (PDEATHSIG). */
export class PeerProcess {
  readonly name: string;
  readonly pid: number;
  /** Settles when the program has ended, with words for how. Never rejects. */
  readonly ended: Promise<string>;
  /** How the program ended, in words; undefined while it runs. */
  endedHow: string | undefined;
  private readonly child: ChildProcess;
  private readonly printed = new Tail();
  private readonly said = new Tail();

  constructor(options: PeerProcessOptions) {
    this.name = options.name;
    const line = ['--pdeathsig', 'KILL'];
    if (options.nice) line.push('nice', '-n', String(options.nice));
    if (options.cpus !== undefined) line.push('taskset', '-c', options.cpus);
    if (options.unbuffered) line.push('stdbuf', '-o0');
    line.push(options.command, ...options.args);
    // each of these programs replaces itself by the next: the pid is the peer's own
    this.child = spawn('setpriv', line, {
      stdio: ['pipe', 'pipe', 'pipe'],
      env: { ...process.env, LC_ALL: 'C', ...options.env },
      ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    });
    this.pid = this.child.pid ?? -1;
    running.add(this);
    this.ended = new Promise((resolve) => {
      const done = (how: string) => {
        running.delete(this);
        this.endedHow ??= how;
        resolve(this.endedHow);
      };
      this.child.on('error', (error) => done(`could not be started: ${error.message}`));
      this.child.on('close', (code, signal) => done(signal ? `ended by ${signal}` : `ended with status ${code}`));
    });
    this.child.stdin?.on('error', () => {}); // it ended: `ended` tells
    for (const stream of [this.child.stdout, this.child.stderr]) {
      stream?.setEncoding('utf8').on('data', (data: string) => this.printed.add(data));
    }
    this.child.stdout?.on('data', (data: string) => this.said.add(data));
  }

  /** How many characters it has printed so far, on both streams: a mark for {@link outputSince}. */
  get outputLen(): number {
    return this.printed.length;
  }

  /** What it printed after a mark, as far as it is kept. */
  outputSince(mark: number): string {
    return this.printed.since(mark);
  }

  /** The same of its standard output alone, whose lines nothing else gets into. */
  get saidLen(): number {
    return this.said.length;
  }

  saidSince(mark: number): string {
    return this.said.since(mark);
  }

  /** The last lines it printed. */
  lastLines(count = 20): string {
    return lastLines(this.printed.text, count);
  }

  /** Writes to its standard input. */
  write(text: string): void {
    this.child.stdin?.write(text);
  }

  /** Ends its standard input. */
  endInput(): void {
    this.child.stdin?.end();
  }

  /** Sends a signal; does nothing when it has ended. */
  signal(signal: NodeJS.Signals): void {
    if (this.endedHow === undefined && this.pid > 0) this.child.kill(signal);
  }

  /** SIGKILL, without waiting. */
  killNow(): void {
    this.signal('SIGKILL');
  }

  /** Ends it with SIGTERM, and with SIGKILL when that has no effect within `graceMs`. Returns once it is gone. */
  async stop(graceMs = 5000): Promise<void> {
    this.signal('SIGTERM');
    if (await this.endsWithin(graceMs)) return;
    this.killNow();
    if (!(await this.endsWithin(5000))) throw new Error(`${this.name} (pid ${this.pid}) survives SIGKILL`);
  }

  /** Whether it has ended, or does so within `ms`. */
  async endsWithin(ms: number): Promise<boolean> {
    const timer = new AbortController();
    const timeUp = sleep(ms * SLOWNESS, false, { signal: timer.signal }).catch(() => false);
    const gone = await Promise.race([this.ended.then(() => true), timeUp]);
    timer.abort();
    return gone;
  }

  /** {@link waitUntil}, failing early when the program ends, and with its last lines in the error. */
  async waitUntil(what: string, ready: () => boolean | Promise<boolean>, timeoutMs: number): Promise<void> {
    await waitUntil(`${this.name}: ${what}`, ready, timeoutMs, {
      givenUp: () => this.endedHow,
      details: () => this.lastLines(),
    });
  }
}

/** The last lines of a text, without trailing blanks. */
export function lastLines(text: string, count: number): string {
  return text.trimEnd().split(/\r*\n/).slice(-count).join('\n');
}

/** What {@link waitUntil} says and checks besides the condition. */
export interface WaitOptions {
  /** A reason not to wait any longer, once there is one. */
  givenUp?: () => string | undefined;
  /** Added to the error, such as the last lines of a log. */
  details?: () => string;
  /** Time between two looks, in ms. Default 20. */
  everyMs?: number;
}

/** Waits for a condition, looking at it again and again. Rejects, naming `what`, after `timeoutMs`. */
export async function waitUntil(
  what: string,
  ready: () => boolean | Promise<boolean>,
  timeoutMs: number,
  options: WaitOptions = {},
): Promise<void> {
  const end = performance.now() + timeoutMs * SLOWNESS;
  for (;;) {
    const reason = options.givenUp?.();
    if (await ready()) return;
    const late = performance.now() > end;
    if (late || reason !== undefined) {
      const details = options.details?.() ?? '';
      throw new Error(
        `waited for ${what}: ${reason ?? `not within ${timeoutMs * SLOWNESS} ms`}${details && `\n${details}`}`,
      );
    }
    await sleep(options.everyMs ?? 20);
  }
}

/** Runs a program to its end and returns what it printed. Rejects when its status is not 0 or after `timeoutMs`. */
export async function runToEnd(options: PeerProcessOptions, timeoutMs: number): Promise<string> {
  const program = new PeerProcess(options);
  if (!(await program.endsWithin(timeoutMs))) {
    await program.stop(1000);
    throw new Error(`${options.name}: no end within ${timeoutMs} ms\n${program.lastLines()}`);
  }
  if (program.endedHow !== 'ended with status 0') {
    throw new Error(`${options.name} ${program.endedHow}\n${program.lastLines()}`);
  }
  return program.outputSince(0);
}
