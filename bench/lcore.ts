/**
 * What a packet costs the lcore itself: one lcore and its guests on one thread, everything in cache. No peers, no other threads,
 * no kernel; good for comparing versions of the packet path, not for claims.
 *
 *   node bench/lcore.ts [--size 64] [--touch] [--seconds 1] [--rounds 5] [--ports 2] [--ring 256] [--mergeable] [--packed]
 *                      [--in-order] [--core 1] [--idle 0] [--macs N]
 *
 * --idle: so many more ports that never send, and what each port without a packet costs a round. --macs: so many addresses, which the
 * ports send from and to by turns, one packet each; at most as many as the rings have entries. By default a port has one, and a burst is
 * from one address to another.
 */
import { openSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { Lcore } from '../src/lcore/lcore.ts';
import { GuestMemory, type Place } from '../src/mem/guest-memory.ts';
import { WindowPool } from '../src/mem/window.ts';
import { GuestRam } from '../src/port/guest-ram.ts';
import { NetPair } from '../src/port/net-pair.ts';
import { counterBlock, LCORE_SLOTS, PORT_SLOTS, readCounters } from '../src/stats/counters.ts';
import { pinThread } from '../src/sys/affinity.ts';
import { Caller } from '../src/sys/eventfd.ts';
import { featureMask, VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1 } from '../src/uapi/virtio.ts';
import { VIRTIO_NET_F_MRG_RXBUF } from '../src/uapi/virtio-net.ts';
import { NO_FD } from '../src/vhost/vhost-device.ts';
import { frameOf } from './frames.ts';
import { StaticPort } from './static-port.ts';

const HEADER_LEN = 12;
const BUFFER_BYTES = 2048;
const RAM_BYTES = 64 * 2 ** 20;
const TURNS_PER_LOOK = 256;
const IDLE_POLLS = 50_000;
const IDLE_ROUNDS = 10;

const { values: args } = parseArgs({
  options: {
    size: { type: 'string', default: '64' },
    touch: { type: 'boolean', default: false },
    seconds: { type: 'string', default: '1' },
    rounds: { type: 'string', default: '5' },
    ports: { type: 'string', default: '2' },
    ring: { type: 'string', default: '256' },
    mergeable: { type: 'boolean', default: false },
    packed: { type: 'boolean', default: false },
    'in-order': { type: 'boolean', default: false },
    core: { type: 'string' },
    idle: { type: 'string', default: '0' },
    macs: { type: 'string', default: '0' },
  },
});
const size = Number(args.size);
const num = Number(args.ring);
const nPorts = Number(args.ports);
const nIdle = Number(args.idle);
const nMacs = Number(args.macs);
if (args.core !== undefined) pinThread([Number(args.core)]);

const config = {
  learning: 'dynamic',
  vm2vm: 1,
  macAgeing: 300,
  macTableSize: 16384,
  macLimit: 8192,
  maxPorts: nPorts + nIdle,
} as const;
const pool = new WindowPool('wasm');
const features = featureMask(
  VIRTIO_F_VERSION_1,
  ...(args.mergeable ? [VIRTIO_NET_F_MRG_RXBUF] : []),
  ...(args.packed ? [VIRTIO_F_RING_PACKED] : []),
  ...(args['in-order'] ? [VIRTIO_F_IN_ORDER] : []),
);
const lcoreCounters = new Float64Array(counterBlock(LCORE_SLOTS));
const lcore = new Lcore(config, lcoreCounters, new Caller(new Int32Array(1), 0), pool.acquire(), {
  onRegistered: () => {},
  onDuplicate: () => {},
  onMiss: () => {},
  onFault: (port, vring, fault) => {
    throw new Error(`port ${port}: vring ${vring}: fault ${fault}`);
  },
});
const blocks = Array.from({ length: nPorts + nIdle }, () => counterBlock(PORT_SLOTS));

/** Gives a frame the addresses of its turn. */
function numbered(frame: Uint8Array, n: number): Uint8Array {
  const which = nMacs === 0 ? 0 : n % Math.ceil(nMacs / nPorts);
  for (const at of [2, 8]) frame.set([which >> 8, which & 0xff], at);
  return frame;
}

function guest(id: number): StaticPort {
  const ram = new GuestRam([{ guestAddr: 0, size: RAM_BYTES }]);
  const pair = new NetPair(ram, {
    ringSize: num,
    packed: args.packed,
    inOrder: args['in-order'],
    eventIdx: false,
    headerLen: HEADER_LEN,
    maxFrame: Math.max(size, 1522),
    bufferBytes: BUFFER_BYTES,
    mergeable: args.mergeable,
    txLayout: { pieces: 'one', indirect: false },
    rxLayout: { pieces: 'one', indirect: false },
  });
  const frames = Array.from({ length: num }, (_, n) => numbered(frameOf(id, (id + 1) % nPorts, size, n), n));
  const port = new StaticPort(pair, ram, frames, HEADER_LEN);
  lcore.addPort(id, blocks[id]);
  const memory = new GuestMemory(pool);
  const [region] = ram.regions;
  memory.add({ ...region, fd: openSync(`/proc/self/fd/${region.fd}`, 'r+') }, 0, 'bench');
  lcore.setMemory(id, { chunks: memory.chunks, windows: memory.windows, iotlb: false, log: undefined });
  for (const [vring, { driver, addr }] of pair.rings.entries()) {
    const at = (off: number) => memory.placeOf(ram.frontendAddrOf(addr) + off - driver.place.descOff, 1) as Place;
    const { descOff, availOff, usedOff } = driver.place;
    const ring = {
      format: driver.format,
      num,
      base: driver.vringBase,
      desc: at(descOff),
      avail: at(availOff),
      used: at(usedOff),
      eventIdx: false,
      indirect: false,
      kickFd: NO_FD,
      callFd: NO_FD,
    };
    lcore.startVring(id, vring, { ring, features, enabled: true, errFd: NO_FD });
  }
  return port;
}

const ports = Array.from({ length: nPorts }, (_, id) => guest(id));
for (let id = nPorts; id < nPorts + nIdle; id++) guest(id);
const idleNs = nIdle === 0 ? undefined : measureIdle();
for (const port of ports) port.start(args.touch);

/** CPU time of this process, ms: other processes disturb it less than they do the clock. */
function cpuMs(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}

/** @returns ns of CPU time that each port costs a round, when no port sends: the least of some rounds */
function measureIdle(): number {
  const ns = Array.from({ length: IDLE_ROUNDS }, () => {
    const from = cpuMs();
    for (let i = 0; i < IDLE_POLLS; i++) lcore.poll();
    return ((cpuMs() - from) * 1e6) / (IDLE_POLLS * (nPorts + nIdle));
  });
  return Math.min(...ns);
}

/** @returns ns of CPU time a packet, over `seconds` */
function measure(seconds: number): number {
  let packets = 0;
  const from = cpuMs();
  let elapsed = 0;
  while (elapsed < seconds * 1000) {
    for (let i = 0; i < TURNS_PER_LOOK; i++) {
      packets += lcore.poll();
      for (let p = 0; p < nPorts; p++) ports[p].poll(32, args.touch);
    }
    elapsed = cpuMs() - from;
  }
  return (elapsed * 1e6) / packets;
}

measure(0.5);
const ns = Array.from({ length: Number(args.rounds) }, () => measure(Number(args.seconds))).sort((a, b) => a - b);
const counters = readCounters(PORT_SLOTS, blocks[0]);
const lost = counters.tx_packets - counters.tx_forwarded;
const median = ns[ns.length >> 1];
const load = { size, touch: args.touch, ports: nPorts, packed: args.packed, inOrder: args['in-order'], macs: nMacs };
process.stdout.write(
  `${JSON.stringify({ ...load, idle: nIdle, idleNs, ns: median, min: ns[0], mpps: 1000 / median, lost })}\n`,
);
