/** A client of QEMU's machine protocol (QMP) over a Unix socket. */
import { connect, type Socket } from 'node:net';
import { waitUntil } from './process.ts';

/** An event QEMU sent, such as DEVICE_DELETED. */
export interface QmpEvent {
  event: string;
  data?: Record<string, unknown>;
}

interface QmpReply {
  return?: unknown;
  error?: { class: string; desc: string };
}

/** One QMP connection. Commands are sent one after the other. */
export class QmpClient {
  private readonly path: string;
  private socket: Socket | undefined;
  private received = '';
  private replies: QmpReply[] = [];
  private events: QmpEvent[] = [];
  private closed: string | undefined;
  private turn: Promise<unknown> = Promise.resolve();
  private nextId = 0;

  /** @param path of QEMU's `-qmp unix:` socket; it need not exist yet. */
  constructor(path: string) {
    this.path = path;
  }

  /** Runs a command and returns its answer. Rejects with QEMU's words when the command fails. */
  execute(command: string, args: Record<string, unknown> = {}, timeoutMs = 30_000): Promise<unknown> {
    const result = this.turn.then(async () => {
      const deadline = performance.now() + timeoutMs;
      if (this.socket === undefined) await this.open(timeoutMs);
      return this.exchange(command, args, deadline - performance.now());
    });
    this.turn = result.catch(() => {});
    return result;
  }

  /** Waits for an event that has not been taken yet, and takes it. Events count from the first command on. */
  async waitEvent(name: string, timeoutMs = 30_000): Promise<QmpEvent> {
    const find = () => this.events.findIndex((event) => event.event === name);
    await waitUntil(`QMP event ${name}`, () => find() >= 0, timeoutMs, { givenUp: () => this.closed });
    return this.events.splice(find(), 1)[0];
  }

  /** Closes the connection; QEMU goes on running. */
  close(): void {
    this.socket?.destroy();
  }

  private async open(timeoutMs: number): Promise<void> {
    const deadline = performance.now() + timeoutMs;
    let failure = '';
    const attempt = () =>
      new Promise<boolean>((resolve) => {
        const socket = connect(this.path);
        socket.once('connect', () => {
          this.socket = socket;
          resolve(true);
        });
        socket.once('error', (error) => {
          failure = error.message;
          resolve(false);
        });
      });
    await waitUntil(`QMP socket ${this.path}`, attempt, timeoutMs, { details: () => failure, everyMs: 50 });
    const socket = this.socket!;
    socket.setEncoding('utf8').on('data', (data: string) => this.receive(data));
    socket
      .on('error', () => {})
      .on('close', () => {
        this.closed = 'QMP connection closed';
      });
    await this.exchange('qmp_capabilities', {}, deadline - performance.now());
  }

  private receive(data: string): void {
    const lines = (this.received + data).split('\n');
    this.received = lines.pop()!;
    for (const line of lines) {
      const message = JSON.parse(line) as QmpReply & Partial<QmpEvent> & { QMP?: unknown };
      if (message.event !== undefined) this.events.push(message as QmpEvent);
      else if (message.QMP === undefined) this.replies.push(message);
    }
  }

  private async exchange(command: string, args: Record<string, unknown>, timeoutMs: number): Promise<unknown> {
    const id = this.nextId++;
    this.socket!.write(`${JSON.stringify({ execute: command, arguments: args, id })}\n`);
    const find = () => this.replies.findIndex((reply) => (reply as { id?: number }).id === id);
    await waitUntil(`answer to QMP ${command}`, () => find() >= 0, timeoutMs, {
      givenUp: () => (find() < 0 ? this.closed : undefined),
      everyMs: 5,
    });
    const reply = this.replies[find()];
    this.replies = [];
    if (reply.error !== undefined) throw new Error(`QMP ${command}: ${reply.error.desc}`);
    return reply.return;
  }
}
