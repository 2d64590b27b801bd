/** Runs shell commands in a test guest, over the second serial port that test/guest/init listens to. */
import { connect, type Socket } from 'node:net';
import { waitUntil } from './process.ts';

/** ASCII record separator: the agent's mark between output and exit status. */
const END_MARK = '\x1e';

/** What a command in the guest printed (standard output and error together) and ended with. */
export interface ShellResult {
  status: number;
  output: string;
}

/** One guest's agent. Commands run one after the other, in the order they were given. */
export class GuestAgent {
  private readonly path: string;
  private socket: Socket | undefined;
  private received = '';
  private turn: Promise<unknown> = Promise.resolve();
  private nextTag = 0;

  /** @param path of the serial port's Unix socket, which QEMU listens on. */
  constructor(path: string) {
    this.path = path;
  }

  /**
   * Runs a command, of one or more lines, in the guest's busybox shell.
   * After a time-out the command still runs in the guest, and later ones wait for it.
   */
  run(command: string, timeoutMs: number): Promise<ShellResult> {
    const result = this.turn.then(async () => {
      if (this.socket === undefined || this.socket.destroyed) await this.open(timeoutMs);
      return this.exchange(command, timeoutMs);
    });
    this.turn = result.catch(() => {});
    return result;
  }

  /** Closes the connection; the guest goes on running. */
  close(): void {
    this.socket?.destroy();
  }

  private async open(timeoutMs: number): Promise<void> {
    const attempt = () =>
      new Promise<boolean>((resolve) => {
        const socket = connect(this.path);
        socket.once('connect', () => {
          this.socket = socket;
          resolve(true);
        });
        socket.on('error', () => resolve(false));
      });
    await waitUntil(`agent socket ${this.path}`, attempt, timeoutMs, { everyMs: 50 });
    this.received = '';
    this.socket!.setEncoding('latin1').on('data', (data: string) => {
      this.received += data;
    });
  }

  private async exchange(command: string, timeoutMs: number): Promise<ShellResult> {
    // the tag comes before the output, so that what an earlier, timed-out command left is not taken for this one's
    const tag = `:${process.pid}.${this.nextTag++}:`;
    const encoded = Buffer.from(command).toString('base64');
    this.socket!.write(`printf '${tag}'; eval "$(echo ${encoded} | base64 -d)"\n`, 'latin1');
    let result: ShellResult | undefined;
    const answered = () => {
      const start = this.received.indexOf(tag);
      const end = start < 0 ? -1 : this.received.indexOf(END_MARK, start);
      const lineEnd = end < 0 ? -1 : this.received.indexOf('\n', end);
      if (lineEnd < 0) return false;
      result = {
        status: Number(this.received.slice(end + 1, lineEnd)),
        output: Buffer.from(this.received.slice(start + tag.length, end), 'latin1').toString('utf8'),
      };
      this.received = '';
      return true;
    };
    await waitUntil(`the guest to run: ${command}`, answered, timeoutMs, {
      givenUp: () => (this.socket?.destroyed ? 'the guest is gone' : undefined),
      details: () => Buffer.from(this.received.slice(-2000), 'latin1').toString('utf8'),
      everyMs: 5,
    });
    return result!;
  }
}
