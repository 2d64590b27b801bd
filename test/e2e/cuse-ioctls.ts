/** Every ioctl of vhost-net with good, bad and hostile arguments, for whoever serves it: the kernel, or the switch. */
import { openSync, writeSync } from 'node:fs';
import { createEventfd } from '../../src/sys/eventfd.ts';
import { createMemfd, mapZero, reserve } from '../../src/sys/memory.ts';
import { openTap } from '../../src/sys/tap.ts';
import * as vhost from '../../src/uapi/vhost-ioctl.ts';
import { closeFds, memoryTable, OwnMemory, u32s, u64, vringAddr } from '../kit/cuse-bench.ts';
import { CuseClient } from '../kit/cuse-client.ts';

const MIB = 2 ** 20;
const GUEST = 0x4000_0000;
const PAGE = 4096;
const HEADER_BYTES = 12;
/** Every ioctl with an argument in memory, and its bytes. */
const WITH_MEMORY: Readonly<Record<string, number>> = {
  GET_FEATURES: vhost.VHOST_GET_FEATURES,
  SET_FEATURES: vhost.VHOST_SET_FEATURES,
  GET_BACKEND_FEATURES: vhost.VHOST_GET_BACKEND_FEATURES,
  SET_BACKEND_FEATURES: vhost.VHOST_SET_BACKEND_FEATURES,
  SET_MEM_TABLE: vhost.VHOST_SET_MEM_TABLE,
  SET_LOG_BASE: vhost.VHOST_SET_LOG_BASE,
  SET_LOG_FD: vhost.VHOST_SET_LOG_FD,
  SET_VRING_NUM: vhost.VHOST_SET_VRING_NUM,
  SET_VRING_ADDR: vhost.VHOST_SET_VRING_ADDR,
  SET_VRING_BASE: vhost.VHOST_SET_VRING_BASE,
  GET_VRING_BASE: vhost.VHOST_GET_VRING_BASE,
  SET_VRING_KICK: vhost.VHOST_SET_VRING_KICK,
  SET_VRING_CALL: vhost.VHOST_SET_VRING_CALL,
  SET_VRING_ERR: vhost.VHOST_SET_VRING_ERR,
  NET_SET_BACKEND: vhost.VHOST_NET_SET_BACKEND,
};
/** Every ioctl that only the owner may. */
const OWNED = Object.entries(WITH_MEMORY).filter(([name]) => !name.includes('FEATURES'));
const sizeOf = (cmd: number) => (cmd >>> 16) & 0x3fff;

/** By what was asked: the result, or −errno. */
export type Answers = Map<string, number>;

/** What the cases need of this process. Guest memory is one shared region, `ram`. */
class World {
  readonly #memfd = createMemfd('ioctls', 2 * MIB);
  readonly #short = createMemfd('ioctls-short', PAGE);
  readonly ram = new OwnMemory(2 * MIB).map(this.#memfd);
  readonly eventfd = createEventfd();
  readonly file = openSync('/dev/null', 'r+');
  readonly tap = openTap('ioctls0', HEADER_BYTES, false);
  /** a page that can be read, and one behind the end of its file, which cannot */
  readonly page = new OwnMemory(2 * PAGE).map(this.#short);

  constructor() {
    // a driver writes its rings: memory without a byte in it looks as if the guest had private pages in its place
    writeSync(this.#memfd, new Uint8Array(PAGE));
  }

  /** Ring 0 is what the page tells of, should somebody read the half of an argument. */
  readonly blankPage = (): void => {
    writeSync(this.#short, new Uint8Array(PAGE), 0, PAGE, 0);
  };

  close(): void {
    this.ram.close();
    this.page.close();
    closeFds([this.#memfd, this.#short, this.eventfd, this.file, this.tap]);
  }
}

class Cases {
  readonly answers: Answers = new Map();
  readonly #path: string;
  readonly #world: World;

  constructor(path: string, world: World) {
    this.#path = path;
    this.#world = world;
  }

  /** Runs `use` with an open of its own; with an owner, memory and rings as far as `state` says. */
  #with(state: 'open' | 'owned' | 'rings' | 'running', use: (client: CuseClient) => void): void {
    const client = new CuseClient(this.#path);
    const { ram, tap, eventfd } = this.#world;
    try {
      if (state !== 'open') client.must(vhost.VHOST_SET_OWNER);
      if (state === 'rings' || state === 'running') {
        client.must(
          vhost.VHOST_SET_MEM_TABLE,
          memoryTable([{ guestAddr: GUEST, size: 2 * MIB, userAddr: ram.address }]),
        );
        for (const index of [0, 1]) {
          client.must(vhost.VHOST_SET_VRING_NUM, u32s(index, 256));
          client.must(vhost.VHOST_SET_VRING_ADDR, this.addresses(index));
          client.must(vhost.VHOST_SET_VRING_KICK, u32s(index, eventfd));
        }
      }
      if (state === 'running') for (const index of [0, 1]) client.must(vhost.VHOST_NET_SET_BACKEND, u32s(index, tap));
      use(client);
    } finally {
      client.close();
    }
  }

  /** A sound SET_VRING_ADDR. */
  addresses(index: number): Uint8Array {
    const at = this.#world.ram.address + index * 0x8000;
    return vringAddr(index, at, at + 0x2000, at + 0x1000);
  }

  #ask(client: CuseClient, what: string, cmd: number, argument?: Uint8Array | bigint): void {
    this.answers.set(what, client.call(cmd, argument));
  }

  run(): void {
    this.#pointers();
    this.#owners();
    this.#features();
    this.#memory();
    this.#log();
    this.#vrings();
    this.#descriptors();
    this.#whileRunning();
    this.#unknown();
  }

  /** Arguments that lie nowhere. */
  #pointers(): void {
    const { page, blankPage } = this.#world;
    const bad = { nowhere: 0n, 'in the first page': 8n, "in the kernel's memory": 0xffff_8000_0000_1000n };
    this.#with('owned', (client) => {
      for (const [name, cmd] of Object.entries(WITH_MEMORY)) {
        for (const [where, address] of Object.entries(bad))
          this.#ask(client, `${name} with its argument ${where}`, cmd, address);
        blankPage();
        const cut = BigInt(page.address + PAGE - sizeOf(cmd) + 1);
        this.#ask(client, `${name} with an argument that is cut off`, cmd, cut);
      }
    });
  }

  #owners(): void {
    this.#with('open', (client) => {
      for (const [name, cmd] of OWNED) this.#ask(client, `${name} without an owner`, cmd, new Uint8Array(64));
      this.#ask(client, 'RESET_OWNER without an owner', vhost.VHOST_RESET_OWNER);
      this.#ask(client, 'SET_FEATURES without an owner', vhost.VHOST_SET_FEATURES, u64(0n));
      this.#ask(client, 'SET_OWNER', vhost.VHOST_SET_OWNER);
      this.#ask(client, 'SET_OWNER again', vhost.VHOST_SET_OWNER);
      this.#ask(client, 'RESET_OWNER', vhost.VHOST_RESET_OWNER);
      this.#ask(client, 'SET_VRING_NUM after RESET_OWNER', vhost.VHOST_SET_VRING_NUM, u32s(0, 256));
      this.#ask(client, 'SET_OWNER after RESET_OWNER', vhost.VHOST_SET_OWNER);
    });
  }

  #features(): void {
    this.#with('owned', (client) => {
      const offered = client.features();
      this.#ask(client, 'SET_FEATURES to all that are offered', vhost.VHOST_SET_FEATURES, u64(offered & ~(1n << 26n)));
      this.#ask(client, 'SET_FEATURES with bit 63', vhost.VHOST_SET_FEATURES, u64(offered | (1n << 63n)));
      this.#ask(client, 'SET_BACKEND_FEATURES to none', vhost.VHOST_SET_BACKEND_FEATURES, u64(0n));
      this.#ask(client, 'SET_BACKEND_FEATURES with bit 63', vhost.VHOST_SET_BACKEND_FEATURES, u64(1n << 63n));
    });
  }

  #memory(): void {
    const { ram } = this.#world;
    const good = { guestAddr: GUEST, size: 2 * MIB, userAddr: ram.address };
    const anonymous = reserve(MIB);
    const tables: Record<string, Uint8Array> = {
      'no region': memoryTable([]),
      'one region': memoryTable([good]),
      'one region twice': memoryTable([good, good]),
      'an empty region': memoryTable([{ ...good, size: 0 }]),
      'a region beyond 2⁶⁴': memoryTable([{ ...good, guestAddr: 2 ** 64 - 4096 }]),
      'more regions than it has': memoryTable([good], 2 ** 31),
      'a padding': Uint8Array.from([...u32s(1, 7), ...memoryTable([good]).subarray(8)]),
      'anonymous memory': memoryTable([{ ...good, size: MIB, userAddr: Number(anonymous) }]),
      'memory that is not there': memoryTable([{ ...good, userAddr: PAGE }]),
    };
    for (const [what, table] of Object.entries(tables))
      this.#with('owned', (client) =>
        this.#ask(client, `SET_MEM_TABLE with ${what}`, vhost.VHOST_SET_MEM_TABLE, table),
      );
    mapZero(anonymous, MIB);
  }

  #log(): void {
    const { ram, eventfd, file } = this.#world;
    this.#with('rings', (client) => {
      this.#ask(client, 'SET_LOG_BASE', vhost.VHOST_SET_LOG_BASE, u64(BigInt(ram.address + MIB)));
      this.#ask(client, "SET_LOG_BASE in the kernel's memory", vhost.VHOST_SET_LOG_BASE, u64(0xffff_8000_0000_0000n));
      this.#ask(client, 'SET_LOG_FD', vhost.VHOST_SET_LOG_FD, u32s(eventfd));
      this.#ask(client, 'SET_LOG_FD to none', vhost.VHOST_SET_LOG_FD, u32s(-1));
      this.#ask(client, 'SET_LOG_FD to no eventfd', vhost.VHOST_SET_LOG_FD, u32s(file));
      this.#ask(client, 'SET_LOG_FD to no descriptor', vhost.VHOST_SET_LOG_FD, u32s(12345));
    });
  }

  #vrings(): void {
    const at = this.#world.ram.address;
    this.#with('rings', (client) => {
      for (const index of [2, 65536, 2 ** 32 - 1]) {
        this.#ask(client, `SET_VRING_NUM of ring ${index}`, vhost.VHOST_SET_VRING_NUM, u32s(index, 256));
        this.#ask(client, `SET_VRING_BASE of ring ${index}`, vhost.VHOST_SET_VRING_BASE, u32s(index, 0));
        this.#ask(client, `GET_VRING_BASE of ring ${index}`, vhost.VHOST_GET_VRING_BASE, u32s(index, 0));
        this.#ask(client, `SET_VRING_ADDR of ring ${index}`, vhost.VHOST_SET_VRING_ADDR, this.addresses(index));
        this.#ask(client, `SET_VRING_KICK of ring ${index}`, vhost.VHOST_SET_VRING_KICK, u32s(index, -1));
        this.#ask(client, `NET_SET_BACKEND of ring ${index}`, vhost.VHOST_NET_SET_BACKEND, u32s(index, -1));
      }
      for (const num of [0, 1, 3, 100, 256, 32768, 65536, 2 ** 31])
        this.#ask(client, `SET_VRING_NUM to ${num}`, vhost.VHOST_SET_VRING_NUM, u32s(0, num));
      for (const base of [0, 5, 65535, 65536, 2 ** 31])
        this.#ask(client, `SET_VRING_BASE to ${base}`, vhost.VHOST_SET_VRING_BASE, u32s(0, base));
      this.#ask(client, 'GET_VRING_BASE', vhost.VHOST_GET_VRING_BASE, u32s(1, 0));
    });
    const rings: Record<string, Uint8Array> = {
      'an odd descriptor table': vringAddr(0, at + 8, at + 0x2000, at + 0x1000),
      'an odd available ring': vringAddr(0, at, at + 0x2000, at + 0x1001),
      'an odd used ring': vringAddr(0, at, at + 0x2002, at + 0x1000),
      'unknown flags': vringAddr(0, at, at + 0x2000, at + 0x1000, { flags: 0x80 }),
    };
    for (const [what, ring] of Object.entries(rings))
      this.#with('rings', (client) =>
        this.#ask(client, `SET_VRING_ADDR with ${what}`, vhost.VHOST_SET_VRING_ADDR, ring),
      );
  }

  #descriptors(): void {
    const { eventfd, file, tap } = this.#world;
    const fds = { 'an eventfd': eventfd, none: -1, 'no descriptor': 12345, 'a negative one': -7, 'no eventfd': file };
    const setters = ['SET_VRING_KICK', 'SET_VRING_CALL', 'SET_VRING_ERR'];
    this.#with('rings', (client) => {
      for (const name of setters)
        for (const [what, fd] of Object.entries(fds))
          this.#ask(client, `${name} with ${what}`, WITH_MEMORY[name], u32s(0, fd));
      this.#ask(client, 'SET_VRING_KICK once more', vhost.VHOST_SET_VRING_KICK, u32s(0, eventfd));
      this.#ask(client, 'NET_SET_BACKEND with a tap', vhost.VHOST_NET_SET_BACKEND, u32s(0, tap));
      this.#ask(client, 'NET_SET_BACKEND with the same tap', vhost.VHOST_NET_SET_BACKEND, u32s(0, tap));
      this.#ask(client, 'NET_SET_BACKEND with none', vhost.VHOST_NET_SET_BACKEND, u32s(0, -1));
      this.#ask(client, 'NET_SET_BACKEND with none again', vhost.VHOST_NET_SET_BACKEND, u32s(0, -1));
      this.#ask(client, 'NET_SET_BACKEND with no descriptor', vhost.VHOST_NET_SET_BACKEND, u32s(0, 12345));
      this.#ask(client, 'NET_SET_BACKEND with a file', vhost.VHOST_NET_SET_BACKEND, u32s(0, file));
    });
    this.#with('owned', (client) =>
      this.#ask(client, 'NET_SET_BACKEND of a ring without memory', vhost.VHOST_NET_SET_BACKEND, u32s(0, tap)),
    );
  }

  #whileRunning(): void {
    const { ram } = this.#world;
    this.#with('running', (client) => {
      const ask = (what: string, cmd: number, argument: Uint8Array) =>
        this.#ask(client, `${what} of a running ring`, cmd, argument);
      ask('SET_VRING_NUM', vhost.VHOST_SET_VRING_NUM, u32s(0, 128));
      ask('SET_VRING_BASE', vhost.VHOST_SET_VRING_BASE, u32s(0, 0));
      ask('GET_VRING_BASE', vhost.VHOST_GET_VRING_BASE, u32s(0, 0));
      ask('SET_VRING_ADDR, the same,', vhost.VHOST_SET_VRING_ADDR, this.addresses(0));
      ask('SET_FEATURES', vhost.VHOST_SET_FEATURES, u64(0n));
      const table = memoryTable([{ guestAddr: GUEST, size: 2 * MIB, userAddr: ram.address }]);
      ask('SET_MEM_TABLE', vhost.VHOST_SET_MEM_TABLE, table);
      this.#ask(client, 'RESET_OWNER while rings run', vhost.VHOST_RESET_OWNER);
    });
  }

  #unknown(): void {
    const others = { TCGETS: 0x5401, 'a vhost ioctl of tomorrow': 0xaf7f, 'SET_FEATURES of another size': 0x4004af00 };
    this.#with('owned', (client) => {
      for (const [what, cmd] of Object.entries(others)) this.#ask(client, what, cmd, new Uint8Array(64));
    });
  }
}

/** What the device answers to every case. */
export function askAll(path: string): Answers {
  const world = new World();
  try {
    const cases = new Cases(path, world);
    cases.run();
    return cases.answers;
  } finally {
    world.close();
  }
}
