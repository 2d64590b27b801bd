/** net_af_xdp on a pair of virtual interfaces: what goes in and out, what is counted, and what is left behind. */
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { describe, type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { type AfXdpDevice, openAfXdp } from '../../src/port/af-xdp.ts';
import type { AfXdpSpec } from '../../src/port/af-xdp-port.ts';
import { VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4 } from '../../src/uapi/virtio-net.ts';
import { NEED_CSUM, NEED_TSO4 } from '../../src/virtio-net/offload.ts';
import { openFds } from '../kit/device-bench.ts';
import { frame, mac } from '../kit/frames.ts';
import { checksumIsRight, look, packet } from '../kit/packets.ts';
import type { PortBench } from '../kit/port-bench.ts';
import { pool } from '../kit/ram.ts';
import { withXdp, xdpVdev } from '../kit/xdp-device.ts';
import { enterXdpNetwork } from '../peers/af-xdp.ts';
import { ip } from '../peers/netns.ts';
import { waitUntil } from '../peers/process.ts';
import { addVeth, RawSocket } from '../peers/veth.ts';

const DEADLINE_MS = 60_000;
const A = `xa${process.pid}`;
const B = `xb${process.pid}`;
/** Frames on their way, at most: fewer than any queue between the two ends holds. */
const WINDOW = 256;
const OPENER = fileURLToPath(new URL('af-xdp-opener.ts', import.meta.url));

const skip = await enterXdpNetwork();
/** A socket on the other end, for the time of a test. */
function peer(t: TestContext, name: string): RawSocket {
  const socket = new RawSocket(name);
  t.after(() => socket.close());
  return socket;
}

/** One with two queues: the sender's flow says which of them a frame comes by. */
const A2 = `xc${process.pid}`;
const B2 = `xd${process.pid}`;
if (skip === false) {
  addVeth(A, B);
  addVeth(A2, B2, { queues: 2 });
}

/** Sizes from the shortest frame to the longest without a tag, by a fixed sequence of random numbers. */
function sizes(n: number, longest = 1514): number[] {
  let state = 12345;
  return Array.from({ length: n }, (_, i) => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return i < 2 ? [14, longest][i] : 14 + ((state >>> 8) % (longest - 13));
  });
}

/** Sends all frames, never more than WINDOW ahead of what comes, and checks that each comes out as it went in, in order. */
async function passes(
  frames: readonly Buffer[],
  send: (from: number, most: number) => number,
  receive: () => Buffer[],
) {
  let sent = 0;
  let got = 0;
  const end = performance.now() + DEADLINE_MS;
  while (got < frames.length) {
    sent += send(sent, Math.min(frames.length - sent, WINDOW - (sent - got)));
    for (const one of receive()) assert.ok(one.equals(frames[got++]), `frame ${got - 1}`);
    if (performance.now() > end) assert.fail(`${got} of ${sent} frames came`);
    if (got < sent) await sleep(0);
  }
  assert.equal(sent, frames.length);
}

const isAttached = (name: string) => ip('-d', 'link', 'show', name).includes('prog/xdp');

/** Bytes of a frame that a chunk holds. */
const CHUNK_FRAME = 4096 - 256;

describe('net_af_xdp', { skip }, () => {
  /** The frames pass both ways, and are counted. */
  async function bothWays(raw: RawSocket, bench: PortBench<AfXdpSpec>, frames: readonly Buffer[]): Promise<void> {
    const bytes = frames.reduce((sum, { length }) => sum + length, 0);
    const sendRaw = (from: number, most: number) => {
      let n = 0;
      while (n < most && raw.send(frames[from + n])) n++;
      return n;
    };
    await passes(frames, sendRaw, () => bench.receive());
    const sendBurst = (from: number, most: number) =>
      most === 0 ? 0 : bench.send(frames.slice(from, from + Math.min(most, 1 + (from % 32))));
    const receiveRaw = () => {
      const all: Buffer[] = [];
      for (let one = raw.receive(); one !== undefined; one = raw.receive()) all.push(one);
      return all;
    };
    await passes(frames, sendBurst, receiveRaw);
    bench.port.tick?.();
    const { tx_packets, tx_bytes, rx_packets, rx_bytes, tx_missed } = bench.counters;
    assert.deepEqual([tx_packets, tx_bytes, tx_missed], [frames.length, bytes, 0]);
    assert.deepEqual([rx_packets, rx_bytes], [frames.length, bytes]);
    assert.equal(bench.port.canTransmit, true);
  }

  for (const mode of ['skb', 'native'])
    test(`${mode} mode: 12000 frames of all sizes pass both ways, in order and unchanged, and are counted`, async (t) => {
      const frames = sizes(12_000).map((len) => frame(mac(1), mac(2), len));
      const raw = peer(t, B);
      await withXdp(`iface=${A},mode=${mode}`, async (device, [bench]) => {
        assert.equal(device.mode, mode);
        assert.deepEqual([device.mtu, device.link.up], [1500, true]);
        assert.match(
          device.notes.join(),
          /^xa\d+ takes VLAN tags off, and AF_XDP does not pass them on: to keep them: /,
        );
        await bothWays(raw, bench, frames);
      });
    });

  for (const mode of ['skb', 'native'])
    test(`${mode} mode, MTU 9000: frames of several chunks pass both ways as others do`, async (t) => {
      const around = [1, 2].flatMap((n) => [-1, 0, 1].map((more) => n * CHUNK_FRAME + more));
      const frames = [...around, ...sizes(3000, 9014)].map((len) => frame(mac(1), mac(2), len));
      for (const name of [A, B]) ip('link', 'set', name, 'mtu', '9000');
      t.after(() => {
        for (const name of [A, B]) ip('link', 'set', name, 'mtu', '1500');
      });
      const raw = peer(t, B);
      // so few chunks that all of them come round again and again
      const few = { sizes: { receive: 1024, transmit: 128 } };
      const use = async (device: AfXdpDevice, [bench]: PortBench<AfXdpSpec>[]) => {
        assert.equal(device.mode, mode);
        if (device.notes.some((note) => note.includes('buffers'))) return t.skip(`left out: ${device.notes}`);
        await bothWays(raw, bench, frames);
        assert.equal(bench.send([frame(mac(1), mac(2), 9019)]), 0);
        assert.equal(bench.counters.rx_drop_too_big, 1);
      };
      await withXdp(`iface=${A},mode=${mode}`, use, few);
    });

  test('several lcores and queues: each lcore sends, and receives what comes by its queues', async (t) => {
    const raw = peer(t, B2);
    const open = `iface=${A2},mode=native,queue_count=2`;
    const one = async (lcores: number) =>
      withXdp(
        open,
        async (_, benches) => {
          assert.deepEqual(
            benches.map(({ port }) => [port.queues, port.eventFds.length]),
            (lcores === 1 ? [2] : [1, 1, 0].slice(0, lcores)).map((n) => [n, n]),
          );
          // flows of their own, of which the kernel makes up its mind each by each
          const frames = sizes(300).map((len, i) => {
            const { bytes, csumStart } = packet({ version: 4, protocol: 'udp', payload: Buffer.alloc(len % 1400, i) });
            bytes.writeUInt16BE(i, csumStart);
            return bytes;
          });
          for (const [i, one] of frames.entries()) assert.equal(benches[i % lcores].send([one]), 1);
          const came: string[] = [];
          await waitUntil(
            'all frames',
            () => {
              for (let got = raw.receive(); got !== undefined; got = raw.receive()) came.push(got.toString('hex'));
              return came.length >= frames.length;
            },
            DEADLINE_MS,
          );
          assert.deepEqual(came.sort(), frames.map((bytes) => bytes.toString('hex')).sort());

          for (const bytes of frames) assert.ok(raw.send(bytes));
          const received: string[] = [];
          const bySocket = new Map<string, number>();
          await waitUntil(
            'all frames back',
            () => {
              for (const [lcore, bench] of benches.entries())
                for (let queue = 0; queue < bench.port.queues; queue++)
                  for (const got of bench.receive(queue)) {
                    received.push(got.toString('hex'));
                    bySocket.set(`${lcore} ${queue}`, (bySocket.get(`${lcore} ${queue}`) ?? 0) + 1);
                  }
              return received.length >= frames.length;
            },
            DEADLINE_MS,
          );
          assert.deepEqual(received.sort(), came);
          assert.equal(bySocket.size, 2, 'both queues were used');
        },
        { lcores },
      );
    for (const lcores of [1, 2, 3]) await one(lcores);
  });

  test('more frames than there are chunks: what does not fit is dropped and counted, and what comes later passes', async (t) => {
    const raw = peer(t, B);
    await withXdp(
      `iface=${A},mode=skb`,
      async (_, [bench]) => {
        for (let round = 0; round < 3; round++) {
          const frames = Array.from({ length: 200 }, () => frame(mac(1), mac(2)));
          for (const one of frames) assert.ok(raw.send(one));
          await waitUntil(
            'frames to be lost',
            () => {
              bench.port.tick?.();
              return bench.counters.tx_missed >= 136 * (round + 1);
            },
            DEADLINE_MS,
          );
          assert.deepEqual([...bench.receive(), ...bench.receive(), ...bench.receive()], frames.slice(0, 64));
          assert.equal(bench.counters.tx_missed, 136 * (round + 1));
        }
        // 16 chunks to send from, and they come back with the burst behind them
        const frames = Array.from({ length: 32 }, () => frame(mac(1), mac(2)));
        for (let round = 1; round <= 3; round++) {
          assert.equal(bench.send(frames), 16);
          assert.equal(bench.counters.rx_drop_no_buffer, 16 * round);
          const came: Buffer[] = [];
          const sixteen = () => {
            for (let got = raw.receive(); got !== undefined; got = raw.receive()) came.push(got);
            return came.length >= 16;
          };
          await waitUntil('what was taken', sixteen, DEADLINE_MS);
          assert.deepEqual(came, frames.slice(0, 16));
        }
      },
      { sizes: { receive: 64, transmit: 16 } },
    );
  });

  test('frames that are too long or too short are dropped and counted', async (t) => {
    const raw = peer(t, B);
    await withXdp(`iface=${A}`, async (_, [bench]) => {
      const fitting = frame(mac(1), mac(2), 1518);
      // a chunk of 2048 bytes has so much room
      assert.equal(bench.send([frame(mac(1), mac(2), 2048 - 255), fitting, frame(mac(1), mac(2), 13)]), 1);
      await waitUntil('the fitting one', () => raw.receive()?.equals(fitting) === true, DEADLINE_MS);
      assert.equal(raw.receive(), undefined);
      assert.equal(bench.counters.rx_drop_too_big, 2);
      assert.equal(bench.counters.rx_packets, 1);
    });
  });

  test('what a packet leaves undone is done before it is sent: checksums, and segments', async (t) => {
    const raw = peer(t, B);
    const whole = packet({ version: 4, protocol: 'tcp', payload: Buffer.alloc(20_000, 'segment') });
    const small = packet({ version: 6, protocol: 'udp', payload: Buffer.from('to be summed up') });
    const header = (gsoType: number, gsoSize: number, csumStart: number, csumOffset: number) => {
      const bytes = Buffer.alloc(12);
      bytes[0] = VIRTIO_NET_HDR_F_NEEDS_CSUM;
      bytes[1] = gsoType;
      for (const [i, n] of [0, gsoSize, csumStart, csumOffset].entries()) bytes.writeUInt16LE(n, 2 + 2 * i);
      return bytes;
    };
    await withXdp(`iface=${A}`, async (_, [bench]) => {
      const sent = bench.send([
        { frame: small.bytes, needs: NEED_CSUM, header: header(0, 0, small.csumStart, small.csumOffset) },
        {
          frame: whole.bytes,
          needs: NEED_CSUM | NEED_TSO4,
          header: header(VIRTIO_NET_HDR_GSO_TCPV4, 1000, whole.csumStart, whole.csumOffset),
        },
        { frame: whole.bytes, needs: NEED_CSUM | NEED_TSO4, header: header(VIRTIO_NET_HDR_GSO_TCPV4, 1000, 15, 16) },
      ]);
      assert.equal(sent, 2);
      const came: Buffer[] = [];
      await waitUntil(
        'all segments',
        () => {
          for (let got = raw.receive(); got !== undefined; got = raw.receive()) came.push(got);
          return came.length >= 21;
        },
        DEADLINE_MS,
      );
      assert.ok(came.every((one) => checksumIsRight(look(one))));
      const payload = came.slice(1).map((one) => one.subarray(whole.payloadOff));
      assert.deepEqual(Buffer.concat(payload), whole.bytes.subarray(whole.payloadOff));
      const { rx_packets, rx_drop_bad_offload } = bench.counters;
      assert.deepEqual([came.length, rx_packets, rx_drop_bad_offload], [21, 21, 1]);
    });
  });

  test('while the interface is down frames are refused and counted; afterwards they pass', async (t) => {
    const raw = peer(t, B);
    await withXdp(`iface=${A}`, async (device, [bench]) => {
      const links: boolean[] = [];
      device.onLink(({ up }) => links.push(up));
      ip('link', 'set', A, 'down');
      bench.send([frame(mac(1), mac(2))]);
      assert.equal(bench.port.canTransmit, false);
      assert.equal(bench.send([frame(mac(1), mac(2))]), 0);
      assert.equal(bench.counters.rx_drop_not_ready, 1);
      ip('link', 'set', A, 'up');
      const last = frame(mac(1), mac(2));
      await waitUntil(
        'the interface to send',
        () => {
          bench.port.drain();
          return bench.port.canTransmit;
        },
        DEADLINE_MS,
      );
      assert.equal(bench.send([last]), 1);
      await waitUntil('the last frame', () => raw.receive()?.equals(last) === true, DEADLINE_MS);
      await waitUntil('word of the link', () => links.at(-1) === true, DEADLINE_MS);
      assert.equal(links[0], false);
    });
  });

  test('it is no time to sleep while frames wait', async (t) => {
    const raw = peer(t, B);
    await withXdp(`iface=${A}`, async (_, [bench]) => {
      assert.equal(bench.port.prepareSleep(), true);
      assert.ok(raw.send(frame(mac(1), mac(2))));
      await waitUntil('a frame', () => !bench.port.prepareSleep(), DEADLINE_MS);
      assert.equal(bench.receive().length, 1);
      assert.equal(bench.port.prepareSleep(), true);
    });
  });

  test('nothing is allocated for a frame', async () => {
    setFlagsFromString('--expose-gc');
    const collectGarbage = runInNewContext('gc') as () => void;
    await withXdp(`iface=${A},mode=skb`, async (_, [from]) => {
      await withXdp(`iface=${B},mode=skb`, async (_, [to]) => {
        const burst = Array.from({ length: 32 }, () => frame(mac(1), mac(2)));
        assert.equal(from.send(burst), 32);
        const list = Int32Array.from(burst, (_, i) => i);
        let got = 0;
        const pass = (bursts: number) => {
          for (let i = 0; i < bursts; i++) {
            from.tools.ringStage.burst.count = 32;
            from.port.transmit(list, 0, 32);
            for (let n = to.port.receive(0); n > 0; n = to.port.receive(0)) {
              got += n;
              to.port.complete(0);
            }
          }
        };
        // rounds until the compiler has settled: what it has not optimised yet allocates numbers
        const perBurst: number[] = [];
        for (let round = 0; round < 10 && !(perBurst.at(-1)! < 32); round++) {
          collectGarbage();
          const before = process.memoryUsage().heapUsed;
          pass(1000);
          perBurst.push((process.memoryUsage().heapUsed - before) / 1000);
        }
        assert.ok(got > 1000 * 32 * 0.5, `${got} frames came`);
        // less than a byte for each frame: a call of the kernel may take a number or two
        assert.ok(perBurst.at(-1)! < 32, `bytes a burst, by round: ${perBurst}`);
      });
    });
  });

  test('closing leaves no program, descriptor or window behind, and the queue can be opened again at once', async () => {
    // what is opened once and for all
    await withXdp(`iface=${A}`, async () => {});
    const before = [openFds(), pool.lent];
    for (let round = 0; round < 5; round++) {
      await withXdp(`iface=${A},mode=${round % 2 === 0 ? 'skb' : 'native'}`, async () => {
        assert.equal(isAttached(A), true);
        assert.ok(ip('-d', 'link', 'show', A).includes('promiscuity 1'));
      });
      assert.deepEqual([openFds(), pool.lent], before);
      await waitUntil('the program to be detached', () => !isAttached(A), DEADLINE_MS);
    }
    assert.ok(ip('-d', 'link', 'show', A).includes('promiscuity 0'));
  });

  test('ntuple=1 on an interface without filters of its own: a note, and frames come as without', async (t) => {
    const raw = peer(t, B);
    await withXdp(`iface=${A},ntuple=1`, async (device, [bench]) => {
      assert.equal(device.steering, undefined);
      assert.match(
        device.notes[0],
        /^ntuple=1 has no effect: xa\d+ has no filters that choose a queue; see ethtool -k/,
      );
      const one = frame(mac(1), mac(2));
      assert.ok(raw.send(one));
      await waitUntil('the frame', () => bench.receive().some((got) => got.equals(one)), DEADLINE_MS);
    });
    const both = xdpVdev(`iface=${A},ntuple=1,steer_queues=2`);
    await assert.rejects(openAfXdp(both, { pool, lcores: 1 }), /ntuple=1, the program with steer_queues: give one/);
  });

  test('a process that is killed leaves nothing behind', async () => {
    const child = spawn(process.execPath, [OPENER, `iface=${A}`], { stdio: ['pipe', 'pipe', 'inherit'] });
    const ended = once(child, 'exit');
    const [line] = await once(child.stdout, 'data');
    assert.equal(String(line), 'open\n');
    assert.equal(isAttached(A), true);
    child.kill('SIGKILL');
    await ended;
    await waitUntil('the program to be detached', () => !isAttached(A), DEADLINE_MS);
    await withXdp(`iface=${A}`, async () => {});
  });

  test('what cannot be opened is told in words, and nothing stays open', async () => {
    const refused = async (
      keys: string,
      code: string,
      message: RegExp,
      sizes?: { receive: number; transmit: number },
    ) => {
      const before = [openFds(), pool.lent];
      await assert.rejects(openAfXdp(xdpVdev(keys), { pool, lcores: 1 }, sizes), (error: Error & { code?: string }) => {
        assert.equal(error.code, code, error.message);
        assert.match(error.message, message);
        return true;
      });
      assert.deepEqual([openFds(), pool.lent], before);
    };
    await refused('iface=nosuch0', 'UPLINK_NO_INTERFACE', /^net_af_xdp0: there is no network interface nosuch0/);
    await refused(`iface=${A},start_queue=7`, 'UPLINK_NO_QUEUE', /has not the queue 7/);
    await refused(`iface=${A},queue_count=3`, 'UPLINK_NO_QUEUE', /has not the queues 0 to 2/);
    await refused(`iface=${A},mode=zc`, 'UPLINK_NOT_SUPPORTED', /has no zero copy; use mode=auto/);
    await refused('iface=lo,mode=native', 'UPLINK_NOT_ETHERNET', /carries no Ethernet frames/);
    await refused(`iface=${A},queue_count=64,steer_queues=64`, 'UPLINK_NO_QUEUE', /queues 0 to 63/);
    const huge = { receive: 2 ** 20, transmit: 16 };
    await refused(`iface=${A}`, 'UPLINK_TOO_LARGE', /1 queues with 1 sockets take more than 2 GiB; use fewer/, huge);
    await withXdp(`iface=${A}`, async () => {
      await refused(`iface=${A}`, 'UPLINK_IN_USE', /has another XDP program; end who uses it, or detach it: ip link/);
    });
    const bridge = `xe${process.pid}`;
    ip('link', 'add', bridge, 'type', 'bridge');
    await refused(
      `iface=${bridge},mode=native`,
      'UPLINK_NOT_SUPPORTED',
      /takes no XDP program as things are; use mode=skb/,
    );
    await withXdp(`iface=${bridge}`, async (device) => {
      assert.equal(device.mode, 'skb');
    });
    ip('link', 'del', bridge);
  });

  test('without rights one sentence says which', async () => {
    const opened = (command: string, args: readonly string[]) => {
      const all = [...args, process.execPath, OPENER, `iface=${A}`];
      const { stdout, status } = spawnSync(command, all, { encoding: 'utf8', input: '', timeout: DEADLINE_MS });
      return { stdout, status };
    };
    const nobody = opened('setpriv', ['--bounding-set=-all', '--inh-caps=-all', '--reuid=65534', '--clear-groups']);
    assert.equal(nobody.status, 1);
    assert.match(
      nobody.stdout,
      /^UPLINK_NO_RIGHTS: net_af_xdp0: using xa\d+ takes the rights CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF: run as root/,
    );
    const tight = opened('prlimit', [
      '--memlock=1048576',
      'setpriv',
      '--bounding-set=-ipc_lock',
      '--inh-caps=-ipc_lock',
    ]);
    assert.equal(tight.status, 1);
    assert.match(tight.stdout, /^UPLINK_NO_RIGHTS: .* may not be kept in memory: raise the limit \(ulimit -l\)/);
    // what had been attached before it was refused is not any more
    await waitUntil('the program to be detached', () => !isAttached(A), DEADLINE_MS);
  });
});
