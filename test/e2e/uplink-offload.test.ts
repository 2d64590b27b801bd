/** What packets leave undone, at an uplink: the kernel does it where it can, and we do where it cannot. */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { describe, test } from 'node:test';
import { openWindow, type WindowViews } from '../../src/mem/window.ts';
import type { DevicePort } from '../../src/port/device-port.ts';
import { createDevice, openDevice, type UplinkDevice } from '../../src/port/devices.ts';
import { kernelAccepts, putFrame } from '../../src/port/kernel-frame.ts';
import { parseVdev } from '../../src/port/vdev.ts';
import { counterBlock, PORT_SLOTS, type PortCounter, readCounters } from '../../src/stats/counters.ts';
import { NEED_TSO4, NEED_USO4, NEED_USO6 } from '../../src/virtio-net/offload.ts';
import { RingStage } from '../../src/virtio-net/ring-stage.ts';
import { checksumIsRight, look, type Packet, packet } from '../kit/packets.ts';
import { pool } from '../kit/ram.ts';
import { RawHost } from '../kit/raw-host.ts';
import { NetLab } from '../peers/netns.ts';
import { ensurePeers } from '../peers/packages.ts';

const [leftOut] = (await ensurePeers(['netns'])).leftOut;
const skip = leftOut === undefined ? false : leftOut.why;

const GSO_SIZE = 1000;
const PAYLOAD = Buffer.from(Array.from({ length: 40_500 }, (_, i) => (i * 31) & 0xff));
const FRAMES = 41;
const KINDS = { tcp: { gsoType: 1, need: NEED_TSO4 }, udp: { gsoType: 5, need: NEED_USO4 } } as const;

/** An uplink's port on this thread, and what it sends from. */
class Sender {
  readonly port: DevicePort;
  readonly #device: UplinkDevice;
  readonly #counters = new Float64Array(counterBlock(PORT_SLOTS));
  readonly #stage = new RingStage();
  readonly #memory: WindowViews;
  #off = 65536;

  private constructor(device: UplinkDevice, accepts: number) {
    const window = pool.acquire();
    const { kind, spec } = device.recipe(0, 1);
    const windows: WindowViews[] = [];
    for (const handle of [window, ...spec.windows]) windows[handle.id] = openWindow(handle);
    const recipe = { kind, spec: { ...spec, accepts } };
    this.#device = device;
    this.#memory = windows[window.id];
    this.port = createDevice(0, this.#counters, recipe, { ringStage: this.#stage, windows });
  }

  /** @param accepts what the kernel is said to take undone */
  static async open(vdev: string, accepts: number): Promise<Sender> {
    return new Sender(await openDevice(parseVdev(vdev), { pool, lcores: 1 }), accepts);
  }

  /** Sends packets that leave undone what `gsoType` and the checksum say, all in one burst. @returns how many were taken */
  send(packets: readonly Packet[], gsoTypes: readonly number[]): number {
    const { burst } = this.#stage;
    burst.clear();
    for (const [i, { bytes, payloadOff, csumStart, csumOffset }] of packets.entries()) {
      const header = new DataView(new ArrayBuffer(10));
      header.setUint8(0, 1);
      header.setUint8(1, gsoTypes[i]);
      for (const [k, word] of [payloadOff, gsoTypes[i] === 0 ? 0 : GSO_SIZE, csumStart, csumOffset].entries())
        header.setUint16(2 + 2 * k, word, true);
      this.#memory.u8.set(new Uint8Array(header.buffer), this.#off);
      this.#memory.u8.set(bytes, this.#off + 10);
      putFrame(burst, this.#memory, this.#off + 10, bytes.length, this.#off);
      this.#off += 70_000;
    }
    burst.delivered.fill(0);
    return this.port.transmit(burst.all, 0, packets.length);
  }

  get counters(): Record<PortCounter, number> {
    return readCounters(PORT_SLOTS, this.#counters);
  }

  async close(): Promise<void> {
    this.port.close();
    await this.#device.opened.close();
  }
}

async function heard(host: RawHost, frames: number): Promise<Buffer[]> {
  const all: Buffer[] = [];
  while (all.length < frames) {
    const frame = await host.waitFrame();
    assert.ok(frame, `frame ${all.length} of ${frames} is missing`);
    all.push(Buffer.from(frame));
  }
  assert.equal(host.receive(), undefined, 'nothing else comes');
  return all;
}

for (const kind of ['net_af_packet', 'net_tap']) {
  describe(`offloads at ${kind}`, { skip, timeout: 60_000 }, () => {
    for (const protocol of ['tcp', 'udp'] as const) {
      test(`${protocol}: what the kernel takes undone it gets whole, and what it does not is cut and finished`, async () => {
        const lab = new NetLab();
        const tap = { netns: kind === 'net_tap' ? lab.namespace() : '', far: 'tap0' };
        const cable = kind === 'net_tap' ? undefined : lab.veth();
        const vdev = cable === undefined ? `net_tap0,iface=${tap.netns}:tap0` : `net_af_packet0,iface=${cable.near}`;
        const { gsoType, need } = KINDS[protocol];
        const headerLen = protocol === 'tcp' ? 54 : 42;
        const open = readdirSync('/proc/self/fd').length;
        try {
          for (const accepts of [kernelAccepts(), 0]) {
            const sender = await Sender.open(vdev, accepts);
            const host = new RawHost(cable ?? tap, (bytes) => bytes[12] === 8 && bytes[13] === 0);
            const small = packet({ version: 4, protocol, payload: Buffer.from('a checksum is missing') });
            const large = packet({ version: 4, protocol, payload: PAYLOAD });
            assert.equal(sender.send([small, large, small], [0, gsoType, 0]), 3);
            const whole = (accepts & need) !== 0;
            const frames = await heard(host, whole ? 3 : FRAMES + 2);
            assert.deepEqual(frames.at(0)?.subarray(42), frames.at(-1)?.subarray(42), 'they come in order');
            const between = frames.slice(1, -1);
            if (whole) assert.deepEqual(between, [large.bytes]);
            else for (const bytes of frames) assert.ok(checksumIsRight(look(bytes)));
            assert.deepEqual(Buffer.concat(between.map((bytes) => bytes.subarray(headerLen))), PAYLOAD);
            const { rx_packets, rx_bytes } = sender.counters;
            assert.deepEqual(
              [rx_packets, rx_bytes],
              [frames.length, frames.reduce((sum, { length }) => sum + length, 0)],
            );
            host.close();
            await sender.close();
          }
          assert.equal(readdirSync('/proc/self/fd').length, open, 'no descriptor is left');
        } finally {
          lab.remove();
        }
      });
    }

    test('a packet of which no frames can be made is counted, and the others go', async () => {
      const lab = new NetLab();
      const netns = lab.namespace();
      const cable = lab.veth({ netns });
      const vdev = kind === 'net_tap' ? `net_tap0,iface=${netns}:tap0` : `net_af_packet0,iface=${cable.near}`;
      const sender = await Sender.open(vdev, 0);
      try {
        const good = packet({ version: 4, protocol: 'tcp', payload: PAYLOAD });
        const bad = { ...good, bytes: Buffer.from(good.bytes) };
        bad.bytes[23] = 17; // UDP, says the IP header
        assert.equal(sender.send([bad, good], [1, 1]), 1);
        assert.equal(sender.counters.rx_drop_bad_offload, 1);
        assert.equal(sender.counters.rx_packets, FRAMES);
      } finally {
        await sender.close();
        lab.remove();
      }
    });
  });
}

test('the kernel takes UDP segments undone since Linux 6.2', () => {
  const uso = NEED_USO4 | NEED_USO6;
  for (const release of ['6.2.0', '6.18.44-fc', '7.0', '10.1.2'])
    assert.equal(kernelAccepts(release) & uso, uso, release);
  for (const release of ['6.1.0-28-amd64', '5.15.0', '4.19.1']) assert.equal(kernelAccepts(release) & uso, 0, release);
  assert.notEqual(kernelAccepts('5.4.0') & NEED_TSO4, 0);
});
