/**
 * Asks QEMU on its machine protocol (QMP): the version, and what the guest's memory is. Waits no longer than a moment: a monitor serves one
 * client at a time, and another may have it.
 * @see QEMU docs/interop/qmp-spec.rst
 */
import { connect } from 'node:net';

const DEADLINE_MS = 2000;
const MAX_CHARS = 2 ** 20;

/** A memory backend as QEMU describes it. */
export interface MemoryDevice {
  /** absent: made without a name */
  readonly id?: string;
  /** bytes */
  readonly size: number;
  readonly prealloc: boolean;
  /** absent: this QEMU does not tell (before 6.1) */
  readonly share?: boolean;
}

/** What QEMU has said. */
export interface MonitorAnswers {
  /** such as `7.2.22` */
  readonly version: string;
  readonly memory: readonly MemoryDevice[];
}

/** Asks on the Unix socket at `path`. @returns undefined if nobody listens, answers in time, or makes sense */
export function askMonitor(path: string): Promise<MonitorAnswers | undefined> {
  return new Promise((resolve) => {
    const socket = connect(path);
    let received = '';
    let taken = 0;
    let version: string | undefined;
    const end = (answers?: MonitorAnswers) => {
      clearTimeout(timer);
      socket.destroy();
      resolve(answers);
    };
    const timer = setTimeout(end, DEADLINE_MS);
    const say = (execute: string) => socket.write(`${JSON.stringify({ execute, id: execute })}\n`);
    socket.setEncoding('utf8');
    socket.on('error', () => end());
    socket.on('close', () => end());
    socket.on('data', (data: string) => {
      taken += data.length;
      if (taken > MAX_CHARS) return end();
      const lines = (received + data).split('\n');
      received = lines.pop() ?? '';
      for (const line of lines) {
        const message = messageOf(line);
        if (message === undefined) return end();
        if (version === undefined) {
          version = versionOf(message);
          if (version === undefined) return end();
          say('qmp_capabilities');
        } else if (message.id === 'qmp_capabilities') say('query-memdev');
        else if (message.id === 'query-memdev') return end({ version, memory: memoryOf(message.return) });
      }
    });
  });
}

type Message = Readonly<Record<string, unknown>>;

const isObject = (value: unknown): value is Message => typeof value === 'object' && value !== null;

function messageOf(line: string): Message | undefined {
  try {
    const value: unknown = JSON.parse(line);
    return isObject(value) ? value : undefined;
  } catch {
    return undefined; // not JSON: this is no QMP
  }
}

/** From the greeting: `{"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}}}}`. */
function versionOf({ QMP }: Message): string | undefined {
  const version = isObject(QMP) ? QMP.version : undefined;
  const qemu = isObject(version) ? version.qemu : undefined;
  if (!isObject(qemu)) return undefined;
  const parts = [qemu.major, qemu.minor, qemu.micro];
  return parts.every(Number.isSafeInteger) ? parts.join('.') : undefined;
}

function memoryOf(value: unknown): MemoryDevice[] {
  if (!Array.isArray(value)) return [];
  return value.filter(isObject).map(({ id, size, prealloc, share }) => ({
    ...(typeof id === 'string' ? { id } : {}),
    size: Number(size) || 0,
    prealloc: prealloc === true,
    ...(typeof share === 'boolean' ? { share } : {}),
  }));
}
