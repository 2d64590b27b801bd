/** Zero copy, byte for byte: buffers at odd addresses, across pages, in pieces, in ordinary and in huge pages. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { ftruncateSync, mkdtempSync, rmSync, statfsSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import koffi from 'koffi';
import { probeXdp } from '../peers/af-xdp.ts';
import { type Hugepages, reserveHugepages } from '../peers/hugepages.ts';
import { makeTempDir, removeTempDir } from '../peers/process.ts';
import { HEADER, PlacedCard } from './placed-card.ts';
import { closeStepCards, StepCard } from './step-card.ts';
import { frame, macOf } from './traffic.ts';
import { ZeroCopyWorld } from './zero-copy-world.ts';

const skip = await probeXdp();

const HOST = macOf(0x42);
const GUEST = macOf(1);
const MIB = 2 ** 20;
/** What a buffer must have for the longest frame of this MTU, and a tag. */
const ROOM = HEADER + 1518;
const AREA = MIB;
const FRAMES = 40;
const TMPFS_MAGIC = 0x01021994;
const MFD_CLOEXEC = 1;
const MFD_HUGETLB = 4;

const memfdCreate = koffi.load(null).func('memfd_create', 'int', ['str', 'uint']);

function hugeMemory(): number {
  const fd = memfdCreate('huge', MFD_CLOEXEC | MFD_HUGETLB | (21 << 26));
  assert.ok(fd >= 0, 'memfd_create');
  ftruncateSync(fd, 4 * MIB);
  return fd;
}

const sizes = Array.from({ length: FRAMES }, (_, i) => [60, 61, 1513, 1514][i] ?? 60 + ((i * 97) % 1455));
const framesFrom = (from: string, to: string) => sizes.map((bytes, i) => frame(to, from, i, bytes));
const packetOf = (bytes: Uint8Array) => Buffer.concat([Buffer.alloc(HEADER), bytes]);

const OPENER = fileURLToPath(new URL('umem-opener.ts', import.meta.url));

/** What comes of a guest's memory with these rights. @param under a program that takes rights away */
const opened = (under: readonly string[], ...args: readonly string[]) => {
  const [command, ...rest] = [...under, process.execPath, OPENER, ...args];
  return execFileSync(command, rest, { encoding: 'utf8', timeout: 30_000 }).trim();
};

describe('memory that is to be kept in place', { skip }, () => {
  const unlocked = ['setpriv', '--bounding-set=-ipc_lock', '--inh-caps=-ipc_lock', 'prlimit', '--memlock=65536'];
  const temporary = makeTempDir('umem');
  // temporary files may lie in memory: those of this checkout do not
  const dir = statfsSync(temporary).type === TMPFS_MAGIC ? mkdtempSync(join(import.meta.dirname, '.umem-')) : temporary;
  after(() => {
    removeTempDir(temporary);
    rmSync(dir, { recursive: true, force: true });
  });

  test('it is, with the right to', () => assert.equal(opened([]), 'registered'));

  test('beyond the limit it is refused with what to do', () => {
    assert.match(opened(unlocked), /^LANE_MEMLOCK: .*raise the limit of locked memory \(ulimit -l, .*by 9 MiB/);
  });

  test('a file on disk is refused with what to do', () => {
    assert.match(opened([], join(dir, 'file')), /^LANE_NO_MEMORY: .*memory-backend-memfd,share=on/);
  });
});

describe('buffers that the uplink reads and writes itself', { skip, timeout: 120_000 }, () => {
  let world: ZeroCopyWorld;
  let huge: Hugepages;
  let made = 0;
  before(async () => {
    huge = reserveHugepages(16);
    world = await ZeroCopyWorld.start(['--vlan', 'off']);
  });
  after(async () => {
    await closeStepCards();
    await world?.close();
    huge?.release();
  });

  async function withCard(
    packed: boolean,
    memory: () => number | undefined,
    use: (placed: PlacedCard, start: () => Promise<void>) => Promise<void>,
  ): Promise<void> {
    const regions = [2 ** 30, 2 ** 32].map((guestAddr) => {
      const fd = memory();
      return { guestAddr, size: 4 * MIB, ...(fd === undefined ? {} : { fd }) };
    });
    const card = await StepCard.connect({ path: world.running.socket, mac: GUEST, packed, memory: regions });
    const placed = new PlacedCard(card, AREA);
    const start = async () => {
      const mark = world.running.mark;
      await card.start();
      await world.lane(0, mark);
      // the guest shows its address
      placed.send(packetOf(frame(HOST, GUEST, 999)), { area: 0, off: AREA - 128, len: HEADER + 64 });
      placed.kick(1);
      await placed.used(1);
      await world.running.line(/MAC_ADDRESS .* registered/, mark);
      assert.ok(await world.host.waitFrame(), 'the first frame is heard');
    };
    try {
      await use(placed, start);
    } finally {
      const mark = world.running.mark;
      await card.close();
      await world.running.line(/Device has been removed/, mark);
    }
    made++;
  }

  for (const packed of [false, true])
    for (const pages of ['ordinary', 'huge'] as const) {
      const name = `${packed ? 'packed' : 'split'} rings, ${pages} pages`;
      const memory = () => (pages === 'huge' ? hugeMemory() : undefined);
      const lacks = (t: { skip(why: string): void }) => {
        if (pages === 'ordinary' || huge.obtained) return false;
        assert.notEqual(process.env.CI, 'true', huge.why);
        t.skip(huge.why);
        return true;
      };

      test(`${name}: frames come into buffers that touch one another, and nothing else is written`, async (t) => {
        if (lacks(t)) return;
        await withCard(packed, memory, async (placed, start) => {
          // of exactly the bytes that are needed, at odd addresses; every other one in two pieces far apart
          for (let i = 0; i < FRAMES; i++) {
            const area = i % 2;
            const off = 1 + ROOM * (i >> 1);
            if (i % 4 < 2) placed.offer({ area, off, len: ROOM });
            else placed.offer({ area, off, len: HEADER }, { area: 1 - area, off: AREA / 2 + off, len: ROOM - HEADER });
          }
          placed.kick(0);
          await start();
          const frames = framesFrom(HOST, GUEST);
          for (const [i, expected] of frames.entries()) {
            world.host.send(expected);
            const used = await placed.used(0);
            placed.assertFrame(used, expected);
            if (i % 10 === 9) placed.assertIntact();
          }
          assert.equal(placed.outstanding(0), 0);
          placed.assertIntact();
        });
      });

      test(`${name}: frames leave from odd addresses, across pages, in pieces; and come back once, in order`, async (t) => {
        if (lacks(t)) return;
        await withCard(packed, memory, async (placed, start) => {
          await start();
          for (const [i, bytes] of framesFrom(GUEST, HOST).entries()) {
            const packet = packetOf(bytes);
            const area = i % 2;
            // the page ends somewhere in the frame
            const off = 4096 * (2 + 2 * (i >> 1)) - HEADER - (i % 60) - 1;
            const pieces = [1, 2, 3, 8][i % 4];
            const step = Math.ceil(packet.length / pieces);
            const places = Array.from({ length: pieces }, (_, k) => ({
              area: pieces === 1 ? area : (area + k) % 2,
              off: off + 3 * k + step * k,
              len: Math.min(step, packet.length - step * k),
            }));
            placed.send(packet, ...places);
            placed.kick(1);
            const heard = await world.host.waitFrame();
            assert.ok(heard, `frame ${i} is missing`);
            assert.ok(Buffer.from(heard).equals(bytes), `frame ${i} is not as it was sent`);
            const used = await placed.used(1);
            assert.deepEqual(used, { places, len: 0 });
          }
          assert.equal(placed.outstanding(1), 0);
          placed.assertIntact();
        });
      });
    }

  test('what is too small for a frame comes back empty, and the others are used', async () => {
    await withCard(
      false,
      () => undefined,
      async (placed, start) => {
        placed.offer({ area: 0, off: 1, len: ROOM - 1 });
        placed.offer({ area: 0, off: 4001, len: 4 }, { area: 0, off: 5001, len: 2048 });
        placed.offer({ area: 0, off: 8001, len: ROOM });
        placed.offer({ area: 0, off: 12_001, len: 700 }, { area: 0, off: 13_001, len: 1000 });
        placed.kick(0);
        await start();
        for (let i = 0; i < 3; i++) assert.equal((await placed.used(0)).len, 0);
        const expected = frame(GUEST, HOST, 5, 1514);
        world.host.send(expected);
        placed.assertFrame(await placed.used(0), expected);
        placed.assertIntact();
        await world.untilCounter('rx_returned', (n) => n === 3);
      },
    );
  });

  test('all of them had lanes', () => assert.ok(made > 2, `${made} cards`));
});
