/** {MAC address, VLAN} → queue by programs in the kernel: XDP sockets of one interface, and packet sockets of one fanout group. */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { Steering, steerFanout } from '../../src/port/steering.ts';
import { shareByProgram } from '../../src/sys/packet-socket.ts';
import { openFds } from '../kit/device-bench.ts';
import { BROADCAST, frame, mac } from '../kit/frames.ts';
import { packet } from '../kit/packets.ts';
import { withXdp } from '../kit/xdp-device.ts';
import { enterXdpNetwork } from '../peers/af-xdp.ts';
import { waitUntil } from '../peers/process.ts';
import { addVeth, RawSocket } from '../peers/veth.ts';

const DEADLINE_MS = 60_000;
const A = `sa${process.pid}`;
const B = `sb${process.pid}`;
const QUEUES = 4;

const skip = await enterXdpNetwork();
if (skip === false) addVeth(A, B);

/** A frame of `len` bytes, four of which are a tag if there is a VLAN. */
function tagged(dst: Buffer, vlan: number, tpid = 0x8100, len = 64): Buffer {
  if (vlan === 0) return frame(dst, mac(99), len);
  const bytes = frame(dst, mac(99), len - 4);
  const tag = Buffer.alloc(4);
  tag.writeUInt16BE(tpid, 0);
  // with a priority, which is no part of the number
  tag.writeUInt16BE(0xa000 | vlan, 2);
  return Buffer.concat([bytes.subarray(0, 12), tag, bytes.subarray(12)]);
}

interface Sent {
  readonly bytes: Buffer;
  /** the queue it belongs to; none: it has no entry */
  readonly queue: number | undefined;
}

/** What the tests of both kinds need of the receiving side. */
interface Receivers {
  readonly steering: Steering;
  /** bytes of a frame's tag that are counted */
  readonly tagBytes: number;
  /** everything that has come on a queue, without tags where the kernel has taken them off */
  take(queue: number): Buffer[];
}

const untagged = (bytes: Buffer) =>
  [0x8100, 0x88a8].includes(bytes.readUInt16BE(12))
    ? Buffer.concat([bytes.subarray(0, 12), bytes.subarray(16)])
    : bytes;

/** Sends frames to guests that come, move and go, and checks where each came out and what was counted. */
async function exercise(raw: RawSocket, { steering, take, tagBytes }: Receivers): Promise<void> {
  const counts = { packets: Array(QUEUES + 1).fill(0), bytes: Array(QUEUES + 1).fill(0) };
  const came: string[][] = Array.from({ length: QUEUES }, () => []);
  const expected: string[][] = Array.from({ length: QUEUES }, () => []);
  const pass = async (frames: readonly Sent[]) => {
    for (const { bytes, queue } of frames) {
      assert.ok(raw.send(bytes));
      expected[queue ?? 0].push(untagged(bytes).toString('hex'));
      counts.packets[queue ?? QUEUES]++;
      counts.bytes[queue ?? QUEUES] += untagged(bytes).length + (untagged(bytes) === bytes ? 0 : tagBytes);
    }
    const total = expected.reduce((sum, { length }) => sum + length, 0);
    await waitUntil(
      'all frames',
      () => {
        for (let queue = 0; queue < QUEUES; queue++)
          came[queue].push(...take(queue).map((bytes) => untagged(bytes).toString('hex')));
        return came.reduce((sum, { length }) => sum + length, 0) >= total;
      },
      DEADLINE_MS,
    );
    assert.deepEqual(came, expected);
    const { queues, unknown } = steering.counts();
    assert.deepEqual(
      [...queues, unknown].map(({ packets }) => packets),
      counts.packets,
    );
    assert.deepEqual(
      [...queues, unknown].map(({ bytes }) => bytes),
      counts.bytes,
    );
  };

  await pass([{ bytes: tagged(mac(1), 0), queue: undefined }]);
  for (let guest = 0; guest < 40; guest++) steering.add(mac(guest), 1000 + guest, guest % QUEUES);
  steering.add(mac(7), 0, 3);
  steering.add(BROADCAST, 1001, 2);
  const frames: Sent[] = [];
  for (let n = 0; n < 2000; n++) {
    const guest = n % 40;
    const len = 60 + ((n * 131) % 1400);
    frames.push({ bytes: tagged(mac(guest), 1000 + guest, n % 7 === 0 ? 0x88a8 : 0x8100, len), queue: guest % QUEUES });
    // the same address with another tag, or without one, is somebody else's
    if (n % 50 === 0) frames.push({ bytes: tagged(mac(guest), 1040), queue: undefined });
    if (n % 50 === 1) frames.push({ bytes: tagged(mac(guest), 0), queue: guest === 7 ? 3 : undefined });
  }
  frames.push({ bytes: tagged(mac(7), 0), queue: 3 }, { bytes: tagged(BROADCAST, 1001), queue: 2 });
  frames.push({ bytes: tagged(BROADCAST, 0), queue: undefined });
  // a frame that is but a header
  frames.push({ bytes: Buffer.concat([mac(7), mac(99), Buffer.from([8, 0])]), queue: 3 });
  for (let from = 0; from < frames.length; from += 200) await pass(frames.slice(from, from + 200));

  // guest 5 moves, guest 6 goes
  steering.add(mac(5), 1005, 0);
  assert.equal(steering.remove(mac(6), 1006), true);
  assert.equal(steering.remove(mac(6), 1006), false);
  assert.equal(steering.remove(mac(6), 0), false);
  await pass([
    { bytes: tagged(mac(5), 1005), queue: 0 },
    { bytes: tagged(mac(6), 1006), queue: undefined },
  ]);
}

describe('steering', { skip }, () => {
  let raw: RawSocket;
  before(() => {
    raw = new RawSocket(B);
  });
  after(() => raw.close());

  for (const mode of ['skb', 'native'])
    test(`XDP in ${mode} mode: each frame comes out of its guest's queue, and the counts are exact`, async () => {
      await withXdp(
        `iface=${A},mode=${mode},steer_queues=${QUEUES}`,
        async (device, benches) => {
          const { steering } = device;
          assert.ok(steering instanceof Steering);
          const seen = benches.map(({ port }) => port.queues);
          assert.deepEqual(seen, [2, 2], 'queues 0 and 2, and 1 and 3');
          const take = (queue: number) => {
            const all: Buffer[] = [];
            for (let got = benches[queue % 2].receive(queue >> 1); got.length > 0; ) {
              all.push(...got);
              got = benches[queue % 2].receive(queue >> 1);
            }
            return all;
          };
          await exercise(raw, { steering, take, tagBytes: 4 });
        },
        { lcores: 2 },
      );
    });

  test('XDP on an interface with two queues: whichever a frame comes by, it comes out of its guest queue', async () => {
    const [near, far] = [`sc${process.pid}`, `sd${process.pid}`];
    addVeth(near, far, { queues: 2 });
    const sender = new RawSocket(far);
    await withXdp(
      `iface=${near},mode=native,queue_count=2,steer_queues=3`,
      async ({ steering }, benches) => {
        assert.deepEqual(
          benches.map(({ port }) => port.queues),
          [4, 2],
        );
        // of each queue of the interface: lcore 0 has steered queues 0 and 2, lcore 1 has 1
        const steeredBy = [
          [0, 2, 0, 2],
          [1, 1],
        ];
        for (let guest = 0; guest < 3; guest++) steering?.add(mac(guest), 0, guest);
        const sent = new Map<string, number>();
        for (let i = 0; i < 300; i++) {
          const { bytes, csumStart } = packet({ version: 4, protocol: 'udp', payload: Buffer.alloc(20, i) });
          bytes.writeUInt16BE(i, csumStart);
          mac(i % 3).copy(bytes, 0);
          sent.set(bytes.toString('hex'), i % 3);
          assert.ok(sender.send(bytes));
        }
        const used = new Set<string>();
        await waitUntil(
          'all frames',
          () => {
            for (const [lcore, bench] of benches.entries())
              for (let queue = 0; queue < bench.port.queues; queue++)
                for (const bytes of bench.receive(queue)) {
                  assert.equal(sent.get(bytes.toString('hex')), steeredBy[lcore][queue]);
                  sent.delete(bytes.toString('hex'));
                  used.add(`${lcore} ${queue}`);
                }
            return sent.size === 0;
          },
          DEADLINE_MS,
        );
        assert.equal(used.size, 6, 'all sockets were used');
        const counts = steering?.counts();
        assert.deepEqual(
          counts?.queues.map(({ packets }) => packets),
          [100, 100, 100],
        );
        assert.equal(counts?.unknown.packets, 0);
      },
      { lcores: 2 },
    );
    sender.close();
  });

  test('packet sockets of a fanout group: each frame comes out of its guest socket, and the counts are exact', async () => {
    const steering = new Steering(QUEUES);
    const sockets: RawSocket[] = [];
    try {
      for (let queue = 0; queue < QUEUES; queue++) sockets.push(new RawSocket(A));
      shareByProgram(sockets.map(({ fd }) => fd));
      steerFanout(sockets[0].fd, steering);
      const take = (queue: number) => {
        const all: Buffer[] = [];
        for (let got = sockets[queue].receive(); got !== undefined; got = sockets[queue].receive()) all.push(got);
        return all;
      };
      await exercise(raw, { steering, take, tagBytes: 0 });
    } finally {
      for (const socket of sockets) socket.close();
      steering.close();
    }
  });

  test('a full table, a queue that is not there and a VLAN that cannot be are refused', () => {
    const before = openFds();
    const steering = new Steering(2, 3);
    for (let guest = 0; guest < 3; guest++) assert.equal(steering.add(mac(guest), 0, 0), true);
    assert.equal(steering.add(mac(3), 0, 0), false);
    assert.equal(steering.add(mac(2), 0, 1), true);
    steering.remove(mac(2), 0);
    assert.equal(steering.add(mac(3), 0, 0), true);
    assert.throws(() => steering.add(mac(1), 0, 2), /queue 2 of 2/);
    assert.throws(() => steering.add(mac(1), 4096, 1), /VLAN 4096/);
    assert.throws(() => steering.add(mac(1).subarray(1), 0, 1), /an address of 5 bytes/);
    assert.throws(() => new Steering(0), /a queue at least/);
    assert.deepEqual(steering.counts(), {
      queues: [
        { packets: 0, bytes: 0 },
        { packets: 0, bytes: 0 },
      ],
      unknown: { packets: 0, bytes: 0 },
    });
    steering.close();
    assert.equal(openFds(), before);
  });
});
