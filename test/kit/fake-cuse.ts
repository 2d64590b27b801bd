/**
 * The kernel's half of CUSE, as fs/fuse does it, over a socket pair in place of /dev/cuse: sends requests and waits for their answers;
 * ioctls ask for pieces of the caller's memory, which is a map of bytes here.
 */
import assert from 'node:assert/strict';
import { closeSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { check, libc } from '../../src/sys/libc.ts';
import { AGAIN, receive, send } from '../../src/sys/unix-socket.ts';
import {
  CUSE_INIT,
  CUSE_INIT_OUT,
  FUSE_IN_HEADER,
  FUSE_IOCTL,
  FUSE_IOCTL_IN,
  FUSE_IOCTL_IOVEC,
  FUSE_IOCTL_OUT,
  FUSE_IOCTL_RETRY,
  FUSE_IOCTL_UNRESTRICTED,
  FUSE_OPEN,
  FUSE_OPEN_OUT,
  FUSE_OUT_HEADER,
  FUSE_RELEASE,
  FUSE_RELEASE_IN,
} from '../../src/uapi/fuse.ts';

const AF_UNIX = 1;
const SOCK_SEQPACKET = 5;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;
const PATIENCE_MS = 10000;
const socketpair = libc.func('socketpair', 'int', ['int', 'int', 'int', 'void *']);
/** FUSE_IOCTL_MAX_IOV */
const MAX_IOV = 256;

/** An answer: 0 or a negative errno, and what follows the header. */
export interface Answer {
  readonly error: number;
  readonly body: DataView;
}

/** What an ioctl came to: its result, or a negative errno. */
export interface IoctlResult {
  readonly result: number;
  /** how often it was asked for more of the caller's memory */
  readonly retries: number;
}

/** The caller's memory: bytes at an address. Reading or writing elsewhere is EFAULT. */
export interface CallerMemory {
  readonly base: number;
  readonly bytes: Uint8Array;
}

const EFAULT = -14;
const EIO = -5;

export class FakeCuse {
  /** the end that takes the place of /dev/cuse; who takes it owns it */
  readonly deviceFd: number;
  readonly #fd: number;
  readonly #waiting = new Map<bigint, (answer: Answer) => void>();
  /** messages that answer nothing: code and body */
  readonly notices: { code: number; body: DataView }[] = [];
  readonly #unsent: Uint8Array[] = [];
  #unique = 2n;
  #closed = false;
  readonly #reading: Promise<void>;
  devName = '';
  /** of the thread that is said to call */
  pid = process.pid;

  constructor() {
    const fds = new Int32Array(2);
    check(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 'socketpair');
    [this.#fd, this.deviceFd] = fds;
    this.#reading = this.#read();
  }

  async #read(): Promise<void> {
    const buffer = new Uint8Array(65536);
    while (!this.#closed) {
      let n: number;
      try {
        n = receive(this.#fd, buffer, []);
      } catch {
        return;
      }
      if (n === 0) return;
      this.#sendMore();
      if (n === AGAIN) await sleep(1);
      else this.#take(buffer.slice(0, n));
    }
  }

  #take(bytes: Uint8Array): void {
    const view = new DataView(bytes.buffer);
    const { len, error, unique } = FUSE_OUT_HEADER.off;
    assert.equal(view.getUint32(len, true), bytes.length, 'the header of an answer tells its length');
    const id = view.getBigUint64(unique, true);
    const body = new DataView(bytes.buffer, FUSE_OUT_HEADER.size);
    const code = view.getInt32(error, true);
    if (id === 0n) {
      this.notices.push({ code, body });
      return;
    }
    assert.ok(code <= 0 && code > -512, `an error of ${code}`);
    const answered = this.#waiting.get(id);
    assert.ok(answered !== undefined, `an answer to request ${id}, which nobody waits for`);
    this.#waiting.delete(id);
    answered({ error: code, body });
  }

  /** The bytes of a request. */
  bytesOf(opcode: number, body: Uint8Array, unique: bigint): Uint8Array {
    const bytes = new Uint8Array(FUSE_IN_HEADER.size + body.length);
    const view = new DataView(bytes.buffer);
    view.setUint32(FUSE_IN_HEADER.off.len, bytes.length, true);
    view.setUint32(FUSE_IN_HEADER.off.opcode, opcode, true);
    view.setBigUint64(FUSE_IN_HEADER.off.unique, unique, true);
    view.setUint32(FUSE_IN_HEADER.off.pid, this.pid, true);
    bytes.set(body, FUSE_IN_HEADER.size);
    return bytes;
  }

  /** Sends a message, as soon as there is room for it. */
  sendRaw(bytes: Uint8Array): void {
    this.#unsent.push(bytes);
    this.#sendMore();
  }

  #sendMore(): void {
    while (this.#unsent.length > 0 && send(this.#fd, this.#unsent[0]) !== AGAIN) this.#unsent.shift();
  }

  /** Sends a request and waits for its answer. */
  request(opcode: number, body: Uint8Array): Promise<Answer> {
    const unique = this.#unique;
    this.#unique += 2n;
    return this.#exchange(this.bytesOf(opcode, body, unique), unique);
  }

  /** Sends the bytes of a request and waits for its answer. @returns the answer's bytes in hex */
  async exchange(request: Uint8Array): Promise<string> {
    const unique = new DataView(request.buffer).getBigUint64(FUSE_IN_HEADER.off.unique, true);
    return Buffer.from((await this.#exchange(request, unique)).body.buffer).toString('hex');
  }

  async #exchange(request: Uint8Array, unique: bigint): Promise<Answer> {
    const { promise, resolve, reject } = Promise.withResolvers<Answer>();
    this.#waiting.set(unique, resolve);
    this.sendRaw(request);
    const timer = setTimeout(() => reject(new Error(`request ${unique} was not answered`)), PATIENCE_MS);
    try {
      return await promise;
    } finally {
      clearTimeout(timer);
    }
  }

  /** CUSE_INIT; keeps the device's name. */
  async init({ major = 7, minor = 38, flags = 1 } = {}): Promise<Answer> {
    const answer = await this.request(CUSE_INIT, new Uint8Array(new Uint32Array([major, minor, 0, flags]).buffer));
    const info = Buffer.from(answer.body.buffer, answer.body.byteOffset + CUSE_INIT_OUT.size).toString();
    this.devName = /^DEVNAME=(.*)\0$/.exec(info)?.[1] ?? '';
    return answer;
  }

  /** @returns the handle, or a negative errno */
  async open(): Promise<bigint> {
    const { error, body } = await this.request(FUSE_OPEN, new Uint8Array(8));
    return error === 0 ? body.getBigUint64(FUSE_OPEN_OUT.off.fh, true) : BigInt(error);
  }

  async release(handle: bigint): Promise<number> {
    const body = new DataView(new ArrayBuffer(FUSE_RELEASE_IN.size));
    body.setBigUint64(0, handle, true);
    return (await this.request(FUSE_RELEASE, new Uint8Array(body.buffer))).error;
  }

  /** One round of an ioctl, with the bytes and sizes of the caller's memory as the kernel would have them. */
  ioctlRequest(
    handle: bigint,
    cmd: number,
    arg: number,
    { data = new Uint8Array(0), outSize = 0, flags = FUSE_IOCTL_UNRESTRICTED } = {},
  ): Promise<Answer> {
    const { size, off } = FUSE_IOCTL_IN;
    const body = new Uint8Array(size + data.length);
    const view = new DataView(body.buffer);
    view.setBigUint64(off.fh, handle, true);
    view.setUint32(off.flags, flags, true);
    view.setUint32(off.cmd, cmd, true);
    view.setBigUint64(off.arg, BigInt(arg), true);
    view.setUint32(off.in_size, data.length, true);
    view.setUint32(off.out_size, outSize, true);
    body.set(data, size);
    return this.request(FUSE_IOCTL, body);
  }

  /** An ioctl as the kernel does it: copies what it is asked for, again and again, and what comes out. */
  async ioctl(handle: bigint, cmd: number, memory?: CallerMemory, onCopied?: () => void): Promise<IoctlResult> {
    const arg = memory?.base ?? 0;
    let input: Piece[] = [];
    let output: Piece[] = [];
    for (let retries = 0; ; retries++) {
      assert.ok(retries < 10, 'an ioctl asks for memory without end');
      const data = gather(memory, input);
      if (data === undefined) return { result: EFAULT, retries };
      const outSize = output.reduce((sum, { len }) => sum + len, 0);
      onCopied?.();
      const { error, body } = await this.ioctlRequest(handle, cmd, arg, { data, outSize });
      if (error !== 0) return { result: error, retries };
      const { result, flags, in_iovs, out_iovs } = FUSE_IOCTL_OUT.off;
      if ((body.getUint32(flags, true) & FUSE_IOCTL_RETRY) === 0) {
        const out = new Uint8Array(body.buffer, body.byteOffset + FUSE_IOCTL_OUT.size);
        if (out.length > outSize) return { result: EIO, retries };
        return { result: scatter(memory, output, out) ? body.getInt32(result, true) : EFAULT, retries };
      }
      const n = [body.getUint32(in_iovs, true), body.getUint32(out_iovs, true)];
      assert.ok(n[0] + n[1] <= MAX_IOV && n[0] <= MAX_IOV && n[1] <= MAX_IOV);
      const pieces = Array.from({ length: n[0] + n[1] }, (_, i) => pieceAt(body, i));
      [input, output] = [pieces.slice(0, n[0]), pieces.slice(n[0])];
    }
  }

  /** The kernel gives the device up, or the module goes. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.#reading;
    closeSync(this.#fd);
  }
}

interface Piece {
  readonly base: number;
  readonly len: number;
}

function pieceAt(body: DataView, i: number): Piece {
  const at = FUSE_IOCTL_OUT.size + i * FUSE_IOCTL_IOVEC.size;
  return {
    base: Number(body.getBigUint64(at + FUSE_IOCTL_IOVEC.off.base, true)),
    len: Number(body.getBigUint64(at + FUSE_IOCTL_IOVEC.off.len, true)),
  };
}

const isIn = (memory: CallerMemory | undefined, { base, len }: Piece): memory is CallerMemory =>
  memory !== undefined && base >= memory.base && base + len <= memory.base + memory.bytes.length;

function gather(memory: CallerMemory | undefined, pieces: readonly Piece[]): Uint8Array<ArrayBuffer> | undefined {
  const parts: Uint8Array[] = [];
  for (const piece of pieces) {
    if (!isIn(memory, piece)) return undefined;
    parts.push(memory.bytes.subarray(piece.base - memory.base, piece.base - memory.base + piece.len));
  }
  return Uint8Array.from(Buffer.concat(parts));
}

function scatter(memory: CallerMemory | undefined, pieces: readonly Piece[], data: Uint8Array): boolean {
  let at = 0;
  for (const piece of pieces) {
    if (!isIn(memory, piece)) return false;
    memory.bytes.set(data.subarray(at, at + piece.len), piece.base - memory.base);
    at += piece.len;
  }
  return true;
}
