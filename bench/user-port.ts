/**
 * What a packet costs a virtio-user port itself: one port that receives and sends again, on one thread, everything in cache, before a
 * device that only marks buffers used. Good for comparing versions, not for claims.
 *
 *   node bench/user-port.ts [--size 64] [--seconds 1] [--rounds 5] [--ring 256] [--packed] [--in-order] [--mergeable] [--offloads] [--core 1]
 */
import { parseArgs } from 'node:util';
import { openWindow, WindowPool } from '../src/mem/window.ts';
import { ringLayout } from '../src/port/net-pair.ts';
import { makeUserRing, PAIR_WANTED, pairControl } from '../src/port/user-pair.ts';
import { type UserRingPlan, userRingState } from '../src/port/user-ring.ts';
import { VirtioUserPort } from '../src/port/virtio-user-port.ts';
import { counterBlock, PORT_SLOTS, readCounters } from '../src/stats/counters.ts';
import { pinThread } from '../src/sys/affinity.ts';
import {
  VRING_AVAIL,
  VRING_DESC_F_WRITE,
  VRING_PACKED_DESC,
  VRING_PACKED_EVENT_FLAG_DISABLE,
  VRING_USED_ELEM,
  VRING_USED_F_NO_NOTIFY,
} from '../src/uapi/virtio-ring.ts';
import { BURST_SIZE } from '../src/virtio-net/burst.ts';
import { NEED_CSUM } from '../src/virtio-net/offload.ts';
import { RingStage } from '../src/virtio-net/ring-stage.ts';
import { AVAIL, AVAIL_USED, USED } from '../src/virtqueue/packed-ring.ts';
import { frameOf } from './frames.ts';

const HEADER_LEN = 12;
const BUFFER_BYTES = 2048;
const TURNS_PER_LOOK = 256;
const RINGS_OFF = 2 ** 20;
const RING_ROOM = 2 ** 19;
const BUFFERS_OFF = 2 ** 24;
const NO_FD = -1;

const { values: args } = parseArgs({
  options: {
    size: { type: 'string', default: '64' },
    seconds: { type: 'string', default: '1' },
    rounds: { type: 'string', default: '5' },
    ring: { type: 'string', default: '256' },
    packed: { type: 'boolean', default: false },
    'in-order': { type: 'boolean', default: false },
    mergeable: { type: 'boolean', default: false },
    offloads: { type: 'boolean', default: false },
    core: { type: 'string' },
  },
});
const frameBytes = Number(args.size);
const size = Number(args.ring);
if (args.core !== undefined) pinThread([Number(args.core)]);

const handle = new WindowPool('wasm').acquire();
const window = openWindow(handle);

function planOf(n: number, receives: boolean): UserRingPlan {
  const { availOff, usedOff, descOff } = ringLayout(args.packed, size);
  const off = RINGS_OFF + n * RING_ROOM;
  return {
    format: args.packed ? 'packed' : 'split',
    place: { descOff: off + descOff, availOff: off + availOff, usedOff: off + usedOff },
    ...{ size, eventIdx: false, inOrder: args['in-order'], receives, stride: BUFFER_BYTES, room: BUFFER_BYTES },
    buffersOff: BUFFERS_OFF + n * size * BUFFER_BYTES,
    addressDelta: 0,
    state: userRingState(size),
  };
}

/** The device's end of a ring: marks up to `max` offered buffers used, in order. */
type Use = (max: number) => number;

function splitEnd({ place, receives }: UserRingPlan): Use {
  const { u16, dv } = window;
  const usedIdx = (place.usedOff + VRING_AVAIL.off.idx) >> 1;
  const availIdx = (place.availOff + VRING_AVAIL.off.idx) >> 1;
  // in the order of the available ring they are always right
  for (let i = 0; i < size; i++) {
    const elem = place.usedOff + VRING_AVAIL.size + VRING_USED_ELEM.size * i;
    dv.setUint32(elem + VRING_USED_ELEM.off.id, i, true);
    dv.setUint32(elem + VRING_USED_ELEM.off.len, receives ? frameBytes + HEADER_LEN : 0, true);
  }
  dv.setUint16(place.usedOff + VRING_AVAIL.off.flags, VRING_USED_F_NO_NOTIFY, true);
  return (max) => {
    const used = u16[usedIdx];
    const n = Math.min((Atomics.load(u16, availIdx) - used) & 0xffff, max);
    Atomics.store(u16, usedIdx, (used + n) & 0xffff);
    return n;
  };
}

function packedEnd({ place, receives }: UserRingPlan): Use {
  const { i32 } = window;
  const write = receives ? VRING_DESC_F_WRITE : 0;
  const lenIdx = (place.descOff + VRING_PACKED_DESC.off.len) >> 2;
  let at = 0;
  i32[place.usedOff >> 2] = VRING_PACKED_EVENT_FLAG_DISABLE << 16;
  return (max) => {
    for (let n = 0; n < max; n++) {
      const firstLap = (at & size) === 0;
      const idx = lenIdx + (at & (size - 1)) * (VRING_PACKED_DESC.size >> 2);
      const word = i32[idx + 1];
      if (((word >>> 16) & AVAIL_USED) !== (firstLap ? AVAIL : USED)) return n;
      i32[idx] = frameBytes + HEADER_LEN;
      i32[idx + 1] = (word & 0xffff) | (((firstLap ? AVAIL_USED : 0) | write) << 16);
      at = (at + 1) & (2 * size - 1);
    }
    return max;
  };
}

const plans = [planOf(0, true), planOf(1, false)] as const;
for (const plan of plans) makeUserRing(plan, window).reset();
const [fill, take] = plans.map((plan) => (args.packed ? packedEnd(plan) : splitEnd(plan)));
for (let id = 0; id < size; id++) {
  const buffer = plans[0].buffersOff + id * BUFFER_BYTES;
  window.dv.setUint16(buffer + 10, 1, true);
  window.u8.set(frameOf(0, 1, frameBytes, id), buffer + HEADER_LEN);
}
const control = pairControl();
const block = counterBlock(PORT_SLOTS);
const windows = [];
windows[handle.id] = window;
const ringStage = new RingStage();
const port = new VirtioUserPort(
  0,
  new Float64Array(block),
  {
    windows: [handle],
    ...{ headerLen: HEADER_LEN, mergeable: args.mergeable },
    accepts: args.offloads ? NEED_CSUM : 0,
    maySend: args.offloads ? NEED_CSUM : 0,
    pairs: [
      {
        control: control.buffer as SharedArrayBuffer,
        ...{ rx: plans[0], tx: plans[1], rxKickFd: NO_FD, rxCallFd: NO_FD, txKickFd: NO_FD },
      },
    ],
  },
  { ringStage, windows },
);
Atomics.store(control, PAIR_WANTED, 1);

/** CPU time of this process, ms. */
function cpuMs(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}

/** @returns ns of CPU time a packet, over `seconds` */
function measure(seconds: number): number {
  const { all } = ringStage.burst;
  let packets = 0;
  const from = cpuMs();
  let elapsed = 0;
  while (elapsed < seconds * 1000) {
    for (let i = 0; i < TURNS_PER_LOOK; i++) {
      fill(BURST_SIZE);
      const n = port.receive();
      port.transmit(all, 0, n);
      port.complete();
      take(BURST_SIZE);
      packets += n;
    }
    elapsed = cpuMs() - from;
  }
  return (elapsed * 1e6) / packets;
}

measure(0.5);
const ns = Array.from({ length: Number(args.rounds) }, () => measure(Number(args.seconds))).sort((a, b) => a - b);
const counters = readCounters(PORT_SLOTS, block);
if (counters.rx_packets !== counters.tx_packets) throw new Error('not all packets were sent');
const { packed, mergeable, offloads } = args;
const load = { size: frameBytes, packed, inOrder: args['in-order'], mergeable, offloads };
process.stdout.write(`${JSON.stringify({ ...load, ns: ns[ns.length >> 1], min: ns[0] })}\n`);
