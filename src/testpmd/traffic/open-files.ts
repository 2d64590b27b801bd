/**
 * The capture files of --pcap-in and --pcap-out on the main thread, from when the ports are opened until they are closed.
 */
import { closeSync, constants, fstatSync, openSync, statSync } from 'node:fs';
import { SwitchError } from '../../errors.ts';
import { CaptureReader, captureBuffer, READ_FRAME } from '../../net/capture-reader.ts';
import { captureHeader, writeAll } from '../../net/capture-writer.ts';
import type { TrafficFiles, TrafficSettings } from './traffic-settings.ts';

const { O_RDONLY, O_NONBLOCK, O_WRONLY, O_CREAT, O_TRUNC, O_APPEND } = constants;

export class OpenTrafficFiles implements TrafficFiles {
  replayFd?: number;
  recordFd?: number;

  /** @param ports names, for the file that is recorded. Throws SwitchError: CAPTURE_FILE, BAD_CAPTURE; nothing is left open then. */
  constructor({ replay, recordTo }: TrafficSettings, ports: readonly string[]) {
    try {
      if (replay !== undefined) this.#openReplay(replay.path);
      if (recordTo !== undefined) this.#openRecord(recordTo, ports);
    } catch (error) {
      this.close();
      throw error;
    }
  }

  #openReplay(path: string): void {
    this.replayFd = open('--pcap-in', path, O_RDONLY | O_NONBLOCK);
    if (!fstatSync(this.replayFd).isFile()) throw fault('--pcap-in', path, 'is no regular file');
    const reader = new CaptureReader(this.replayFd, captureBuffer());
    if (reader.nextFilled() === READ_FRAME) return;
    if (reader.fault !== 0) reader.throwFault(path);
    throw fault('--pcap-in', path, 'holds no frame');
  }

  #openRecord(path: string, ports: readonly string[]): void {
    const found = statSync(path, { throwIfNoEntry: false });
    const replayed = this.replayFd === undefined ? undefined : fstatSync(this.replayFd);
    // looked at first: opening it empties it
    if (found !== undefined && found.ino === replayed?.ino && found.dev === replayed.dev)
      throw fault('--pcap-out', path, 'is the file of --pcap-in, which would be lost; give two');
    this.recordFd = open('--pcap-out', path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND);
    try {
      writeAll(this.recordFd, captureHeader('pcapng', ...ports));
    } catch (error) {
      throw fault('--pcap-out', path, (error as Error).message);
    }
  }

  /** What a thread is told. */
  get fds(): TrafficFiles {
    const { replayFd, recordFd } = this;
    return {
      ...(replayFd === undefined ? {} : { replayFd }),
      ...(recordFd === undefined ? {} : { recordFd }),
    };
  }

  close(): void {
    for (const fd of [this.replayFd, this.recordFd]) if (fd !== undefined) closeSync(fd);
    delete this.replayFd;
    delete this.recordFd;
  }
}

function open(option: string, path: string, flags: number): number {
  try {
    return openSync(path, flags, 0o666);
  } catch (error) {
    throw fault(option, path, `cannot be opened: ${(error as Error).message}`);
  }
}

function fault(option: string, path: string, problem: string): SwitchError {
  return new SwitchError('CAPTURE_FILE', `${option} ${path}: ${problem}`);
}
