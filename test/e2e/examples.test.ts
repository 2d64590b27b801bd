/** The worked examples as programs: the conventions that all back ends keep, and what each device answers to whom. */
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { closeSync, existsSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { bindUnix, startListening, unixPair } from '../../src/sys/unix-socket.ts';
import { featureMask, hasFeature } from '../../src/uapi/virtio.ts';
import { evaluateC, hasGcc } from '../abi/c-probe.ts';
import { RequestGuest } from '../kit/request-guest.ts';
import { makeTempDir, removeTempDir } from '../peers/process.ts';
import { SwitchProcess } from './switch-process.ts';

const EXAMPLES = fileURLToPath(new URL('../../examples', import.meta.url));
const main = (name: string) => join(EXAMPLES, `${name}.ts`);
const NODE = ['--conditions=source'];

const dir = makeTempDir('examples');
after(() => removeTempDir(dir));
const image = (name: string, bytes: Uint8Array | number) => {
  const path = join(dir, name);
  writeFileSync(path, typeof bytes === 'number' ? new Uint8Array(bytes) : bytes);
  return path;
};

/** Runs an example to its end. */
function runExample(name: string, args: readonly string[]) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [...NODE, main(name), ...args], {
    encoding: 'utf8',
    timeout: 20_000,
  });
  return { status, stdout, stderr };
}

/** Starts an example that listens. */
async function startExample(name: string, args: readonly string[] = []): Promise<SwitchProcess> {
  return SwitchProcess.start(['--socket-path', './sock', ...args], { main: main(name), node: NODE, wholeLine: true });
}

/** Starts an example, uses it, and checks that SIGTERM ends it cleanly. */
async function withExample(name: string, args: readonly string[], use: (running: SwitchProcess) => Promise<void>) {
  const running = await startExample(name, args);
  try {
    await use(running);
    assert.equal(await running.stop('SIGTERM'), 'ended with status 0', running.output);
    assert.equal(existsSync(running.socket), false, 'the socket is gone');
  } finally {
    await running.kill();
  }
}

/** Connects as soon as the program serves nobody else: it has one device, and the guest before may not be gone yet. */
async function connectWhenFree(path: string): Promise<RequestGuest> {
  for (let tries = 1; ; tries++) {
    try {
      return await RequestGuest.connect(path);
    } catch (error) {
      if (tries === 50) throw error;
      await sleep(100);
    }
  }
}

for (const [name, type, features] of [
  ['vhost-user-rng', 'rng', []],
  ['vhost-user-blk', 'block', ['read-only', 'blk-file']],
] as const)
  describe(`examples/${name}.ts as a program`, () => {
    const more = name === 'vhost-user-blk' ? ['--blk-file', image('conventions.img', 65536)] : [];

    test('is an example: below 250 lines, and knows nothing but the public face', () => {
      const source = readFileSync(main(name), 'utf8');
      assert.ok(source.split('\n').length < 250);
      const imported = [...source.matchAll(/from '([^']+)'/g)].map(([, from]) => from);
      assert.ok(imported.includes('vhost-switch'));
      for (const from of imported) assert.match(from, /^(node:.+|vhost-switch)$/);
    });

    test('--print-capabilities prints JSON and does nothing else', () => {
      const { status, stdout, stderr } = runExample(name, ['--nonsense', '--print-capabilities', '--fd=99']);
      assert.deepEqual([status, stderr], [0, '']);
      assert.deepEqual(JSON.parse(stdout), { type, features });
    });

    test('its JSON descriptor is of the same type', () => {
      const descriptor = JSON.parse(readFileSync(join(EXAMPLES, `50-${name}.json`), 'utf8'));
      assert.deepEqual([descriptor.type, Object.keys(descriptor).sort()], [type, ['binary', 'description', 'type']]);
      assert.match(descriptor.binary, /^\//);
    });

    test('--help tells all options', () => {
      const { status, stdout } = runExample(name, ['--help']);
      assert.equal(status, 0);
      const options = ['--socket-path', '--fd', '--print-capabilities', ...more.slice(0, 1)];
      for (const option of options) assert.ok(stdout.includes(`${option} `), option);
    });

    test('a wrong command line ends with status 2, what cannot be had with 1', () => {
      const wrong = [[], ['--socket-path=a', '--fd=3'], ['--socket-path=a', 'word'], ['--nonsense'], ['--fd=2']];
      for (const args of wrong) {
        const { status, stderr } = runExample(name, [...more, ...args]);
        assert.equal(status, 2, `${args}: ${stderr}`);
        assert.match(stderr, new RegExp(`^${name}: -.*\nTry '${name} --help'.\n$|^${name}: word`));
      }
      const { status, stderr } = runExample(name, [...more, '--fd=99']);
      assert.equal(status, 1);
      assert.match(stderr, /file descriptor 99 is not an open Unix stream socket/);
    });

    for (const signal of ['SIGTERM', 'SIGINT'] as const)
      test(`${signal} ends it cleanly, also while a guest is connected`, async () => {
        const running = await startExample(name, more);
        const guest = await RequestGuest.connect(running.socket);
        try {
          assert.equal(await running.stop(signal), 'ended with status 0', running.output);
          assert.equal(existsSync(running.socket), false);
          assert.equal(await guest.frontEnd.onClose, undefined);
        } finally {
          guest.close();
          await running.kill();
        }
      });

    /** Starts the example with `fd` as its descriptor 3. */
    const startWith = (fd: number) => {
      const args = [...NODE, main(name), '--fd=3', ...more];
      const child = spawn(process.execPath, args, { stdio: ['ignore', 'ignore', 'pipe', fd] });
      let said = '';
      child.stderr?.on('data', (text) => {
        said += text;
      });
      const ended = new Promise<string>((resolve) => child.on('close', (code) => resolve(`${code}\n${said}`)));
      return { child, ended };
    };

    test('--fd serves a connected socket, and ends with its front end', async () => {
      const [ours, theirs] = unixPair();
      const { child, ended } = startWith(theirs);
      closeSync(theirs);
      const guest = await RequestGuest.connect(ours);
      try {
        assert.equal((await guest.ask([new Uint8Array(16)], [513])).bytes.length, 513);
        guest.close();
        assert.match(await ended, /^0\n/);
      } finally {
        child.kill('SIGKILL');
      }
    });

    test('--fd serves a listening socket, and leaves its file alone', async () => {
      const path = join(dir, `${name}.sock`);
      const listener = bindUnix(path);
      startListening(listener, 4);
      const { child, ended } = startWith(listener);
      closeSync(listener);
      try {
        for (let n = 0; n < 2; n++) {
          const guest = await connectWhenFree(path);
          assert.equal((await guest.ask([new Uint8Array(16)], [513])).bytes.length, 513);
          guest.close();
        }
        child.kill('SIGTERM');
        assert.match(await ended, /^0\n/);
        assert.ok(existsSync(path));
      } finally {
        child.kill('SIGKILL');
      }
    });
  });

describe('examples/vhost-user-rng.ts', () => {
  test('gives bytes, as many as there is room for up to 64 KiB, and no two guests the same', async () => {
    await withExample('vhost-user-rng', [], async ({ socket }) => {
      const guests = await Promise.all([false, true].map((packed) => RequestGuest.connect(socket, { packed })));
      const [a, b] = await Promise.all(guests.map((guest) => guest.ask([], [32, 32])));
      assert.deepEqual([a.written, b.written], [64, 64]);
      for (const { bytes } of [a, b]) assert.ok(new Set(bytes).size > 20, 'bytes of all kinds');
      assert.notDeepEqual(a.bytes, b.bytes);
      const large = await guests[0].ask([], [40_000, 40_000]);
      assert.equal(large.written, 65536);
      assert.ok(large.bytes.subarray(65536).every((byte) => byte === 0xee));
      const none = await guests[0].ask([new Uint8Array(4)], []);
      assert.equal(none.written, 0);
      for (const guest of guests) guest.close();
    });
  });
});

const SECTOR = 512;
const SECTORS = 2048;
const T = { IN: 0, OUT: 1, FLUSH: 4, GET_ID: 8, DISCARD: 11, WRITE_ZEROES: 13 };
const S = { OK: 0, IOERR: 1, UNSUPP: 2 };
const F = { RO: 5, FLUSH: 9, CONFIG_WCE: 11, MQ: 12 };

function header(type: number, sector: number | bigint = 0): Uint8Array {
  const bytes = new DataView(new ArrayBuffer(16));
  bytes.setUint32(0, type, true);
  bytes.setBigUint64(8, BigInt(sector), true);
  return new Uint8Array(bytes.buffer);
}

function range(sector: number | bigint, sectors: number, flags = 0): Uint8Array {
  const bytes = new DataView(new ArrayBuffer(16));
  bytes.setBigUint64(0, BigInt(sector), true);
  bytes.setUint32(8, sectors, true);
  bytes.setUint32(12, flags, true);
  return new Uint8Array(bytes.buffer);
}

const pattern = (bytes: number, seed: number) => Uint8Array.from({ length: bytes }, (_, i) => (i * 31 + seed) % 251);

describe('examples/vhost-user-blk.ts', () => {
  const filled = pattern(SECTORS * SECTOR, 3);
  const disk = () => filled;

  for (const packed of [false, true])
    test(`writes and reads what is asked, on every queue (${packed ? 'packed' : 'split'})`, async () => {
      const path = image('disk.img', disk());
      await withExample('vhost-user-blk', ['--blk-file', path], async ({ socket }) => {
        const guest = await RequestGuest.connect(socket, { packed, queues: 3, features: featureMask(F.MQ) });
        const expected = Buffer.from(disk());
        for (let n = 0; n < 60; n++) {
          const sector = (n * 37) % (SECTORS - 24);
          const data = pattern((1 + (n % 24)) * SECTOR, n);
          const options = { queue: n % 3, indirect: n % 2 === 0 };
          // the header, and the data, in pieces wherever they end
          const said = [header(T.OUT, sector).subarray(0, 7), header(T.OUT, sector).subarray(7), data.subarray(0, 100)];
          const written = await guest.ask([...said, data.subarray(100)], [1], options);
          assert.deepEqual([written.written, written.bytes[0]], [1, S.OK]);
          expected.set(data, sector * SECTOR);
          const read = await guest.ask([header(T.IN, sector)], [5, data.length - 5, 1], options);
          assert.deepEqual([read.written, read.bytes.at(-1)], [data.length + 1, S.OK]);
          assert.deepEqual(read.bytes.subarray(0, -1), Buffer.from(data));
        }
        assert.equal((await guest.ask([header(T.FLUSH)], [1])).bytes[0], S.OK);
        guest.close();
        assert.deepEqual(readFileSync(path), expected);
      });
    });

  test('many requests at a time come back in order, each with its own data', async () => {
    const path = image('disk.img', disk());
    await withExample('vhost-user-blk', ['--blk-file', path], async ({ socket }) => {
      const guest = await RequestGuest.connect(socket);
      const requests = Array.from({ length: 40 }, (_, n) => ({ says: [header(T.IN, n * 10)], rooms: [SECTOR, 1] }));
      const answers = await guest.askAll(requests);
      answers.forEach(({ bytes }, n) => {
        assert.deepEqual(
          bytes.subarray(0, SECTOR),
          Buffer.from(disk()).subarray(n * 10 * SECTOR, (n * 10 + 1) * SECTOR),
        );
      });
      guest.close();
    });
  });

  test('what makes no sense is refused, and the disk stays as it was', async () => {
    const path = image('disk.img', disk());
    await withExample('vhost-user-blk', ['--blk-file', path], async (running) => {
      const guest = await RequestGuest.connect(running.socket);
      const status = async (says: readonly Uint8Array[], rooms: readonly number[]) =>
        (await guest.ask(says, rooms)).bytes.at(-1);
      const sector = new Uint8Array(SECTOR);
      const beyond = [SECTORS, SECTORS + 1, 2 ** 53, 2n ** 55n, 2n ** 64n - 1n];
      for (const at of beyond) {
        assert.equal(await status([header(T.IN, at)], [SECTOR, 1]), S.IOERR, `read at ${at}`);
        assert.equal(await status([header(T.OUT, at), sector], [1]), S.IOERR, `write at ${at}`);
        assert.equal(await status([header(T.WRITE_ZEROES), range(at, 1)], [1]), S.IOERR, `zeroes at ${at}`);
      }
      assert.equal(await status([header(T.IN, SECTORS - 1)], [2 * SECTOR, 1]), S.IOERR, 'beyond the end');
      assert.equal(await status([header(T.OUT, SECTORS - 1), sector, sector], [1]), S.IOERR, 'beyond the end');
      assert.equal(await status([header(T.IN)], [SECTOR - 1, 1]), S.IOERR, 'no whole sector');
      assert.equal(await status([header(T.OUT), sector.subarray(1)], [1]), S.IOERR, 'no whole sector');
      assert.equal(await status([header(T.IN).subarray(0, 15)], [SECTOR, 1]), S.IOERR, 'no whole header');
      assert.equal(await status([], [SECTOR, 1]), S.IOERR, 'no header at all');
      assert.equal(await status([header(T.DISCARD), range(0, 1)], [1]), S.UNSUPP);
      assert.equal(await status([header(77)], [1]), S.UNSUPP);
      assert.equal(await status([header(T.WRITE_ZEROES), range(0, 8193)], [1]), S.IOERR, 'too many zeroes');
      assert.equal(await status([header(T.WRITE_ZEROES), range(0, 1, 2)], [1]), S.UNSUPP, 'an unknown flag');
      assert.equal(await status([header(T.WRITE_ZEROES), range(0, 1), range(1, 1)], [1]), S.IOERR, 'two ranges');
      assert.equal(await status([header(T.WRITE_ZEROES)], [1]), S.IOERR, 'no range');
      assert.equal((await guest.ask([header(T.OUT), sector], [])).written, 0, 'no room for the status');
      assert.equal(await status([header(T.FLUSH)], [1]), S.OK, 'and it goes on');
      assert.deepEqual(readFileSync(path), Buffer.from(disk()));
      assert.doesNotMatch(running.output, /told once/, 'the file is not to blame');
      guest.close();
    });
  });

  test('zeroes, and its name', async () => {
    const path = image('disk.img', disk());
    await withExample('vhost-user-blk', ['--blk-file', path], async ({ socket }) => {
      const guest = await RequestGuest.connect(socket);
      const expected = Buffer.from(disk());
      for (const [at, sectors, flags] of [
        [3, 1, 0],
        [100, 1000, 1],
      ]) {
        const { bytes } = await guest.ask([header(T.WRITE_ZEROES), range(at, sectors, flags)], [1]);
        assert.equal(bytes[0], S.OK);
        expected.fill(0, at * SECTOR, (at + sectors) * SECTOR);
      }
      assert.deepEqual(readFileSync(path), expected);
      const { bytes } = await guest.ask([header(T.GET_ID)], [20, 1]);
      assert.equal(bytes.toString('latin1', 0, 20).replace(/\0*$/, ''), path.slice(-20));
      guest.close();
    });
  });

  test('a read-only disk cannot be written', async () => {
    const path = image('disk.img', disk());
    await withExample('vhost-user-blk', ['--blk-file', path, '--read-only'], async ({ socket }) => {
      const guest = await RequestGuest.connect(socket, { features: featureMask(F.RO) });
      assert.ok(hasFeature(guest.features, F.RO));
      const { bytes } = await guest.ask([header(T.OUT), new Uint8Array(SECTOR)], [1]);
      assert.equal(bytes[0], S.IOERR);
      assert.equal((await guest.ask([header(T.WRITE_ZEROES), range(0, 1)], [1])).bytes[0], S.IOERR);
      assert.equal((await guest.ask([header(T.IN)], [SECTOR, 1])).bytes.at(-1), S.OK);
      assert.equal((await guest.ask([header(T.FLUSH)], [1])).bytes[0], S.OK);
      assert.deepEqual(readFileSync(path), Buffer.from(disk()));
      guest.close();
    });
  });

  test('a file that becomes shorter is an I/O error for the guest, which goes on', async () => {
    const path = image('disk.img', disk());
    const running = await startExample('vhost-user-blk', ['--blk-file', path]);
    try {
      const guest = await RequestGuest.connect(running.socket);
      truncateSync(path, 10 * SECTOR);
      for (let n = 0; n < 3; n++)
        assert.equal((await guest.ask([header(T.IN, 9)], [2 * SECTOR, 1])).bytes.at(-1), S.IOERR);
      assert.equal((await guest.ask([header(T.IN, 9)], [SECTOR, 1])).bytes.at(-1), S.OK);
      assert.equal(running.output.match(/the file has become shorter; this is told once/g)?.length, 1);
      guest.close();
    } finally {
      await running.kill();
    }
  });

  test('the config space is that of the C header, and only the cache mode may be written', {
    skip: hasGcc() || process.env.CI === 'true' ? false : 'there is no gcc here to compile the C side with',
  }, async () => {
    const fields = ['capacity', 'size_max', 'seg_max', 'blk_size', 'wce', 'num_queues'].concat([
      'max_write_zeroes_sectors',
      'max_write_zeroes_seg',
      'write_zeroes_may_unmap',
    ]);
    const offsets = evaluateC(
      ['linux/virtio_blk.h'],
      new Map(fields.map((field) => [`offsetof(struct virtio_blk_config, ${field})`, undefined])),
    );
    const off = (field: string) => Number(offsets.get(`offsetof(struct virtio_blk_config, ${field})`));
    const path = image('disk.img', disk());
    await withExample('vhost-user-blk', ['--blk-file', path, '--num-queues=5'], async ({ socket }) => {
      const guest = await RequestGuest.connect(socket, { queues: 5, features: featureMask(F.CONFIG_WCE, F.FLUSH) });
      const { frontEnd } = guest;
      assert.equal(await frontEnd.getQueueNum(), 5);
      const config = new DataView((await frontEnd.getConfig(0, 256)).slice().buffer);
      assert.deepEqual(
        {
          capacity: config.getBigUint64(off('capacity'), true),
          size_max: config.getUint32(off('size_max'), true),
          seg_max: config.getUint32(off('seg_max'), true),
          blk_size: config.getUint32(off('blk_size'), true),
          wce: config.getUint8(off('wce')),
          num_queues: config.getUint16(off('num_queues'), true),
          max_write_zeroes_sectors: config.getUint32(off('max_write_zeroes_sectors'), true),
          max_write_zeroes_seg: config.getUint32(off('max_write_zeroes_seg'), true),
          write_zeroes_may_unmap: config.getUint8(off('write_zeroes_may_unmap')),
        },
        {
          ...{ capacity: BigInt(SECTORS), size_max: 2 ** 20, seg_max: 126, blk_size: 512, wce: 1, num_queues: 5 },
          ...{ max_write_zeroes_sectors: 8192, max_write_zeroes_seg: 1, write_zeroes_may_unmap: 0 },
        },
      );
      await frontEnd.setConfig(off('wce'), Uint8Array.of(0));
      assert.deepEqual(await frontEnd.getConfig(off('wce'), 1), Uint8Array.of(0));
      assert.equal((await guest.ask([header(T.OUT), new Uint8Array(SECTOR)], [1])).bytes[0], S.OK, 'written through');
      await assert.rejects(frontEnd.setConfig(off('wce'), Uint8Array.of(2)), /refused|refuses/);
      await assert.rejects(frontEnd.setConfig(0, Uint8Array.of(1)), /refused|refuses/);
      guest.close();
    });
  });

  test('one guest at a time has the disk, and its successor finds it as it was left', async () => {
    const path = image('disk.img', disk());
    await withExample('vhost-user-blk', ['--blk-file', path], async (running) => {
      const first = await RequestGuest.connect(running.socket);
      await assert.rejects(RequestGuest.connect(running.socket));
      const data = pattern(SECTOR, 99);
      assert.equal((await first.ask([header(T.OUT, 5), data], [1])).bytes[0], S.OK);
      first.close();
      await running.line(/connection 0: disconnected/);
      const second = await RequestGuest.connect(running.socket);
      const { bytes } = await second.ask([header(T.IN, 5)], [SECTOR, 1]);
      assert.deepEqual(bytes.subarray(0, SECTOR), Buffer.from(data));
      second.close();
    });
  });

  test('a disk that is not there, or none, is told before a guest comes', () => {
    const cases: [string[], number, RegExp][] = [
      [[], 2, /--blk-file: is missing/],
      [['--blk-file', dir], 1, /EISDIR/],
      [['--blk-file', join(dir, 'nowhere')], 1, /ENOENT/],
      [['--blk-file', image('small.img', 511)], 2, /must be a regular file of at least 512 bytes/],
      [['--blk-file', image('disk.img', 512), '--num-queues=65'], 2, /1\.\.64/],
    ];
    for (const [args, status, said] of cases) {
      const outcome = runExample('vhost-user-blk', ['--socket-path', join(dir, 'unused'), ...args]);
      assert.equal(outcome.status, status, outcome.stderr);
      assert.match(outcome.stderr, said);
      assert.equal(existsSync(join(dir, 'unused')), false);
    }
  });
});
