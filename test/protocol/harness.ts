/**
 * Servers, raw peers and descriptors of every kind for the protocol tests.
 */
import assert from 'node:assert/strict';
import { closeSync, mkdtempSync, openSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { createEventfd } from '../../src/sys/eventfd.ts';
import { check, libc } from '../../src/sys/libc.ts';
import { createMemfd } from '../../src/sys/memory.ts';
import {
  AGAIN,
  acceptUnix,
  bindUnix,
  connectUnix,
  receive,
  send,
  startListening,
  unixPair,
} from '../../src/sys/unix-socket.ts';
import { VhostUserClient, type VhostUserClientOptions } from '../../src/vhost-user/client.ts';
import type { LogLevel } from '../../src/vhost-user/limited-log.ts';
import { VhostUserServer, type VhostUserServerOptions } from '../../src/vhost-user/server.ts';
import { FakeDevice } from './fake-device.ts';

const PATIENCE_MS = 5000;
const O_CLOEXEC = 0o2000000;
const pipe2 = libc.func('pipe2', 'int', ['void *', 'int']);

/** What a failed test leaves open: closed at the end of the file, which would otherwise never come. */
const leftOpen = new Set<{ close(): unknown }>();
const folders = new Set<string>();
after(async () => {
  await Promise.all([...leftOpen].map((each) => each.close()));
  for (const folder of folders) rmSync(folder, { recursive: true, force: true });
});

export const bytes = (hex: string): Uint8Array => Uint8Array.from(Buffer.from(hex.replaceAll(/\s/g, ''), 'hex'));
export const hexOf = (data: Uint8Array): string => Buffer.from(data).toString('hex');

/** Waits until `condition` holds. */
export async function until(condition: () => boolean, what: string): Promise<void> {
  const giveUpAt = performance.now() + PATIENCE_MS;
  while (!condition()) {
    assert.ok(performance.now() < giveUpAt, `timed out waiting until ${what}`);
    await sleep(1);
  }
}

/** Descriptors this process has open. */
export const openFds = (): number => readdirSync('/proc/self/fd').length;

/** Descriptors for messages, all closed by {@link close}. */
export class FdBox {
  readonly #fds: number[] = [];

  #keep(fd: number): number {
    this.#fds.push(fd);
    return fd;
  }

  eventfd = () => this.#keep(createEventfd());
  memfd = (len = 0x1000) => this.#keep(createMemfd('test', len));
  memfds = (n: number) => Array.from({ length: n }, () => this.memfd());
  file = (path: string) => this.#keep(openSync(path, 'w+'));
  /** Both ends of a pipe: reading, writing. */
  pipe(): [number, number] {
    const fds = new Int32Array(2);
    check(pipe2(fds, O_CLOEXEC), 'pipe2');
    return [this.#keep(fds[0]), this.#keep(fds[1])];
  }
  /** Both ends of a Unix stream socket. */
  pair(): [number, number] {
    const [a, b] = unixPair();
    return [this.#keep(a), this.#keep(b)];
  }
  devNull = () => this.#keep(openSync('/dev/null', 'r+'));
  socket = (path: string) => this.#keep(connectUnix(path));
  many = (n: number) => Array.from({ length: n }, () => this.eventfd());

  close(): void {
    for (const fd of this.#fds.splice(0)) closeSync(fd);
  }
}

/** A socket that says and hears bytes, and knows no protocol. */
export class RawPeer {
  readonly fd: number;
  #closed = false;

  constructor(fd: number) {
    this.fd = fd;
  }

  static connect = (path: string) => new RawPeer(connectUnix(path));

  /** Sends `hex`, all at once. */
  send(hex: string, fds: readonly number[] = []): void {
    const data = bytes(hex);
    assert.equal(send(this.fd, data, fds), data.length);
  }

  /** Waits for `n` bytes and any descriptors with them; fewer when the peer closes. */
  async read(n: number, fds: number[] = []): Promise<string> {
    const data = new Uint8Array(n);
    let got = 0;
    const giveUpAt = performance.now() + PATIENCE_MS;
    while (got < n) {
      const more = receive(this.fd, data.subarray(got), fds);
      if (more === 0) break;
      if (more === AGAIN) {
        assert.ok(
          performance.now() < giveUpAt,
          `timed out waiting for ${n} bytes, got ${hexOf(data.subarray(0, got))}`,
        );
        await sleep(1);
        continue;
      }
      got += more;
    }
    return hexOf(data.subarray(0, got));
  }

  /** True if nothing is there to read, and the connection is open. */
  silent(): boolean {
    return receive(this.fd, new Uint8Array(1), []) === AGAIN;
  }

  /** Waits for the other side to close; ignores what it says before. */
  async untilClosed(): Promise<void> {
    const giveUpAt = performance.now() + PATIENCE_MS;
    for (;;) {
      let n: number;
      try {
        n = receive(this.fd, new Uint8Array(4096), []);
      } catch {
        return; // reset: it had not read everything
      }
      if (n === 0) return;
      assert.ok(performance.now() < giveUpAt, 'timed out waiting for the other side to close');
      if (n === AGAIN) await sleep(1);
    }
  }

  close(): void {
    if (!this.#closed) closeSync(this.fd);
    this.#closed = true;
  }
}

/** A folder for sockets. */
export class TempDir {
  readonly #dir = mkdtempSync(join(tmpdir(), 'vhost-switch-protocol-'));

  constructor() {
    folders.add(this.#dir);
  }

  path = (name: string) => join(this.#dir, name);
  names = () => readdirSync(this.#dir);
  remove = () => {
    rmSync(this.#dir, { recursive: true, force: true });
    folders.delete(this.#dir);
  };
}

/** A server with recording devices and a recorded log, on a socket of its own. */
export class TestServer {
  readonly dir = new TempDir();
  readonly path = this.dir.path('s');
  readonly devices: FakeDevice[] = [];
  readonly lines: string[] = [];
  readonly server: VhostUserServer;
  readonly #peers: RawPeer[] = [];

  constructor(options: Partial<VhostUserServerOptions> & { prepare?: (device: FakeDevice) => void } = {}) {
    this.server = new VhostUserServer({
      path: this.path,
      log: (level: LogLevel, text: string) => this.lines.push(`${level} ${text}`),
      createDevice: (info) => {
        const device = new FakeDevice();
        options.prepare?.(device);
        info.name = `device ${this.devices.length}`;
        this.devices.push(device);
        return device;
      },
      ...options,
    });
    leftOpen.add(this);
  }

  /** A new connection and the device behind it. */
  async connect(): Promise<{ peer: RawPeer; device: FakeDevice }> {
    const n = this.devices.length;
    const peer = RawPeer.connect(this.path);
    this.#peers.push(peer);
    await until(() => this.devices.length > n, 'a device is created');
    return { peer, device: this.devices[n] };
  }

  /** Log lines without those of connecting and disconnecting. */
  problems(): string[] {
    return this.lines.filter((line) => !/: (dis)?connected$/.test(line));
  }

  async close(): Promise<void> {
    leftOpen.delete(this);
    for (const peer of this.#peers) peer.close();
    await this.server.close();
    this.dir.remove();
  }
}

/** A client with recording devices and a recorded log. */
export class TestClient {
  readonly devices: FakeDevice[] = [];
  readonly lines: string[] = [];
  readonly client: VhostUserClient;

  constructor(path: string, options: Partial<VhostUserClientOptions> = {}) {
    this.client = new VhostUserClient({
      path,
      log: (level: LogLevel, text: string) => this.lines.push(`${level} ${text}`),
      createDevice: (info) => {
        const device = new FakeDevice();
        info.name = `device ${this.devices.length}`;
        this.devices.push(device);
        return device;
      },
      retryMs: [5, 20],
      ...options,
    });
    leftOpen.add(this);
  }

  async close(): Promise<void> {
    leftOpen.delete(this);
    await this.client.close();
  }
}

/** A listening socket that accepts by hand, to play a back end, or a front end that listens. */
export class RawServer {
  readonly path: string;
  readonly #dir: TempDir | undefined;
  readonly #fd: number;
  readonly #peers: RawPeer[] = [];

  /** Listens on `path`, which stays when it is closed, as after a crash; or in a folder of its own, removed then. */
  constructor(path?: string) {
    this.#dir = path === undefined ? new TempDir() : undefined;
    this.path = path ?? (this.#dir as TempDir).path('s');
    this.#fd = bindUnix(this.path);
    startListening(this.#fd, 8);
    leftOpen.add(this);
  }

  /** The next connection that is there already, if any. */
  acceptNow(): RawPeer | undefined {
    const fd = acceptUnix(this.#fd);
    if (fd === undefined) return undefined;
    const peer = new RawPeer(fd);
    this.#peers.push(peer);
    return peer;
  }

  async accept(): Promise<RawPeer> {
    let peer: RawPeer | undefined;
    await until(() => {
      peer = this.acceptNow();
      return peer !== undefined;
    }, 'someone connects');
    return peer as RawPeer;
  }

  close(): void {
    leftOpen.delete(this);
    for (const peer of this.#peers) peer.close();
    closeSync(this.#fd);
    this.#dir?.remove();
  }
}
