/**
 * The load generator, a process of its own: N guest network cards on one thread, each connected to a socket of the switch
 * under test, port i sending to port i + 1. Prints one line of JSON.
 *
 *   node bench/generator.ts --socket A --socket B [--core 1] [--size 64] [--touch] [--ring 256] [--seconds 2] [--warmup 0.5]
 *                           [--mergeable] [--packed] [--in-order] [--no-event-idx] [--indirect] [--one-way] [--buffer 2048]
 *                           [--burst 32] [--rx-block 1] [--tx-block 1]
 *   node bench/generator.ts … --rate PPS [--echo] [--missed 0.1]  sends so many frames a second from each port, and times some of them
 *   node bench/generator.ts --loopback [--ports 2] …    what the generator itself can do, without a switch
 *
 * A block: buffers are given to the device in multiples of so many, up to a multiple of it in the ring.
 * Untouched: only ring indexes move, or a packed ring's descriptors. Touched: before a frame is offered, one 32-bit word is written in each of its cache lines
 * (a running number in the first) and its packet header is cleared; of each received frame one word in each cache line is read.
 * With a rate the first line is touched always, and the others if so asked. Echo: the second port sends back what it receives.
 */
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { GuestRam } from '../src/port/guest-ram.ts';
import { NetPair } from '../src/port/net-pair.ts';
import { VirtioUser } from '../src/port/virtio-user.ts';
import { pinThread } from '../src/sys/affinity.ts';
import {
  featureMask,
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_VERSION_1,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_RING_F_INDIRECT_DESC,
} from '../src/uapi/virtio.ts';
import { VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_HDR_MRG_RXBUF } from '../src/uapi/virtio-net.ts';
import { ADDRESSES_LEN, frameOf, macOf } from './frames.ts';
import { Loopback } from './loopback.ts';
import { PacedGuests } from './paced.ts';
import { CARRIED } from './paced-port.ts';
import { StaticPort } from './static-port.ts';
import { DISORDERED, type StaticRing } from './static-ring.ts';

const CONNECT_MS = 5000;
const LEARN_MS = 10_000;
const CHECK_MS = 5000;
/** No frame for so long: the wires are empty. */
const QUIET_MS = 30;
const TURNS_PER_LOOK_AT_CLOCK = 512;

const { values: args } = parseArgs({
  options: {
    socket: { type: 'string', multiple: true, default: [] },
    core: { type: 'string' },
    size: { type: 'string', default: '64' },
    touch: { type: 'boolean', default: false },
    ring: { type: 'string', default: '256' },
    buffer: { type: 'string', default: '2048' },
    burst: { type: 'string', default: '32' },
    seconds: { type: 'string', default: '2' },
    warmup: { type: 'string', default: '0.5' },
    mergeable: { type: 'boolean', default: false },
    packed: { type: 'boolean', default: false },
    'in-order': { type: 'boolean', default: false },
    'event-idx': { type: 'boolean', default: true },
    indirect: { type: 'boolean', default: false },
    'rx-block': { type: 'string', default: '1' },
    'tx-block': { type: 'string', default: '1' },
    'one-way': { type: 'boolean', default: false },
    rate: { type: 'string' },
    missed: { type: 'string', default: '0.1' },
    echo: { type: 'boolean', default: false },
    loopback: { type: 'boolean', default: false },
    ports: { type: 'string', default: '2' },
  },
  allowNegative: true,
});
const { touch, loopback } = args;
const size = Number(args.size);
const ringSize = Number(args.ring);
const bufferBytes = Number(args.buffer);
const burst = Math.min(Number(args.burst), ringSize / 2);
const maxFrame = Math.max(size, 1522);
const nPorts = loopback ? Number(args.ports) : args.socket.length;
if (nPorts < 2) throw new RangeError('at least two ports: give --socket twice, or --loopback');

const next = (i: number) => (i + 1) % nPorts;
const framesOf = (i: number) => Array.from({ length: ringSize }, (_, n) => frameOf(i, next(i), size, n));

function portOf(i: number, pair: NetPair, ram: GuestRam, headerLen: number): StaticPort {
  const port = new StaticPort(pair, ram, framesOf(i), headerLen);
  port.rx.block = Number(args['rx-block']);
  port.tx.block = Number(args['tx-block']);
  return port;
}

/** Sends from every port until every port has received, then until all is quiet. @returns ms to the first frame. */
async function learn(cards: readonly VirtioUser[], startedAt: number): Promise<number> {
  const reached = new Set<number>();
  let firstMs = 0;
  for (const giveUpAt = performance.now() + LEARN_MS; reached.size < nPorts; ) {
    if (performance.now() > giveUpAt)
      throw new Error(`no frame reaches port ${cards.findIndex((_, i) => !reached.has(i))}`);
    for (const [i, card] of cards.entries()) {
      card.send(frameOf(i, next(i), 64, 0));
      card.flush();
    }
    for (const [i, card] of cards.entries()) {
      if ((await card.waitFrame(2)) === undefined) continue;
      if (reached.size === 0) firstMs = performance.now() - startedAt;
      reached.add(i);
    }
  }
  for (let busy = true; busy; ) {
    busy = false;
    await sleep(QUIET_MS);
    for (const card of cards) {
      while (card.receive() !== undefined) busy = true;
      card.pairs[0].tx.reapAll();
      const { nFree, size: all } = card.pairs[0].tx.ring;
      busy ||= nFree < all;
    }
  }
  return firstMs;
}

/** Waits for the device in a slow phase, where a missing frame is a fault. */
async function waitFor(what: string, done: () => boolean): Promise<void> {
  const giveUpAt = performance.now() + CHECK_MS;
  while (!done()) {
    if (performance.now() > giveUpAt) throw new Error(`check: ${what}`);
    await sleep(0);
  }
}

/** Sends every frame twice at a slow pace: each must arrive, in order and unharmed. @returns frames verified. */
async function check(ports: readonly StaticPort[], headerLen: number, payload: boolean): Promise<number> {
  let verified = 0;
  for (let sent = 0; sent < 2 * ringSize; sent += burst) {
    for (const [i, from] of ports.entries()) {
      const to = ports[next(i)];
      const first = from.tx.avail;
      from.tx.publish(burst);
      await waitFor(`port ${i}'s frames are not taken`, () => pending(from.tx) === burst);
      await waitFor(`port ${i}'s frames do not arrive`, () => pending(to.rx) === burst);
      for (let k = 0; k < burst; k++) {
        checkFrame(from, first + k, to, to.rx.used + k, headerLen, payload, `frame ${k} from port ${i}`);
        verified++;
      }
      from.tx.retire(burst);
      to.rx.recycle(burst);
    }
  }
  return verified;
}

/** Compares the buffer sent at place `sent` with the one received at place `received`. */
function checkFrame(
  from: StaticPort,
  sent: number,
  to: StaticPort,
  received: number,
  headerLen: number,
  payload: boolean,
  frame: string,
): void {
  const len = to.rx.usedLenAt(received);
  if (from.tx.usedLenAt(sent) === DISORDERED || len === DISORDERED)
    throw new Error('check: the device uses buffers out of order');
  // A receive buffer that an in-order device does not name would have to be full (VIRTIO 1.2 §2.7.9, §2.8.8).
  if (len !== headerLen + size) throw new Error(`check: ${frame} arrived with ${len} bytes, not ${headerLen + size}`);
  if (!payload) return;
  const begin = headerLen + ADDRESSES_LEN;
  const a = from.bytes(from.tx, sent, begin, headerLen + size);
  const b = to.bytes(to.rx, received, begin, headerLen + size);
  if (Buffer.compare(a, b) !== 0) throw new Error(`check: ${frame} is not as it was sent`);
  const at = VIRTIO_NET_HDR_MRG_RXBUF.off.num_buffers;
  const [lower, upper] = args.mergeable ? to.bytes(to.rx, received, at, at + 2) : [1, 0];
  if (lower !== 1 || upper !== 0) throw new Error(`check: ${frame} is said to be in ${lower + 256 * upper} buffers`);
}

/** Buffers used and not taken back. */
function pending(ring: StaticRing): number {
  device?.poll();
  return ring.pending();
}

/** The hot loop. @returns seconds it ran, and turns. */
function drive(ports: readonly StaticPort[], seconds: number): { seconds: number; turns: number } {
  const from = performance.now();
  const until = from + seconds * 1000;
  let turns = 0;
  do {
    for (let turn = 0; turn < TURNS_PER_LOOK_AT_CLOCK; turn++) {
      for (let i = 0; i < ports.length; i++) ports[i].poll(burst, touch);
      if (device !== undefined) device.poll();
    }
    turns += TURNS_PER_LOOK_AT_CLOCK;
  } while (performance.now() < until);
  return { seconds: (performance.now() - from) / 1000, turns };
}

/** Takes back what is on the way, until nothing has come for a while. */
function drain(ports: readonly StaticPort[]): void {
  for (let quietAt = performance.now() + QUIET_MS; performance.now() < quietAt; ) {
    device?.poll();
    for (const port of ports) if (port.drain()) quietAt = performance.now() + QUIET_MS;
  }
}

/** How often something else was given this thread's core: a run with many of these is worth nothing. */
function preemptions(): number {
  return Number(/^nonvoluntary_ctxt_switches:\s*(\d+)/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1]);
}

function measure(ports: readonly StaticPort[]) {
  const senders = args['one-way'] ? ports.slice(0, 1) : ports;
  for (const port of senders) port.start(touch);
  drive(ports, Number(args.warmup));
  const count = () => ports.map(({ rx, tx }) => ({ sent: tx.total, received: rx.total, found: rx.found + tx.found }));
  const before = count();
  const preemptedBefore = preemptions();
  const { seconds, turns } = drive(ports, Number(args.seconds));
  const preempted = preemptions() - preemptedBefore;
  const after = count();
  drain(ports);
  const directions = senders.map((_, i) => {
    const sent = after[i].sent - before[i].sent;
    const received = after[next(i)].received - before[next(i)].received;
    if (received === 0)
      throw new Error(`no frame of port ${i} arrived in ${seconds.toFixed(1)} s: the switch stalls, or got no CPU`);
    const mpps = received / seconds / 1e6;
    return {
      from: i,
      to: next(i),
      sent,
      received,
      mpps,
      lossPercent: sent === 0 ? 0 : (100 * (sent - received)) / sent,
    };
  });
  const inOrder = ports.every(({ rx, tx }) => [rx, tx].every((r) => r.inOrder(Math.min(r.total, ringSize))));
  const disorder = loopback ? 0 : ports.reduce((sum, port) => sum + port.disorder, 0);
  const found = after.reduce((sum, { found }, i) => sum + found - before[i].found, 0);
  const kicks = ports.reduce((sum, { rx, tx }) => sum + rx.kicks + tx.kicks, 0);
  return {
    seconds,
    mpps: directions.reduce((sum, d) => sum + d.mpps, 0),
    directions,
    inOrder,
    disorder,
    kicks,
    preempted,
    /** looks at a ring that found less than a burst: with none, the generator is the limit, and not the switch */
    waitPercent: 100 * (1 - found / (2 * ports.length * turns)),
  };
}

/** The same at a rate, with times in place of a ceiling. */
function measurePaced(ports: readonly StaticPort[], headerLen: number) {
  const lines = touch ? Math.ceil((headerLen + size) / 64) : 1;
  const { echo, 'one-way': oneWay } = args;
  const seconds = Number(args.seconds);
  const rates = { rate: Number(args.rate), bucket: ringSize / 2, missed: Number(args.missed) };
  const pace = { ...rates, warmup: Number(args.warmup), seconds, echo, oneWay, lines, device };
  const guests = new PacedGuests(ports, pace);
  let preemptedBefore = 0;
  const figures = guests.measure(() => {
    preemptedBefore = preemptions();
  });
  const preempted = preemptions() - preemptedBefore;
  const inOrder = ports.every(({ rx, tx }) => [rx, tx].every((r) => r.inOrder(Math.min(r.total, ringSize))));
  return { ...figures, inOrder, preempted };
}

const run = (ports: readonly StaticPort[], headerLen: number) =>
  args.rate === undefined ? measure(ports) : measurePaced(ports, headerLen);

async function connect(): Promise<VirtioUser[]> {
  const features = featureMask(
    VIRTIO_F_VERSION_1,
    ...(args.mergeable ? [VIRTIO_NET_F_MRG_RXBUF] : []),
    ...(args.packed ? [VIRTIO_F_RING_PACKED] : []),
    ...(args['in-order'] ? [VIRTIO_F_IN_ORDER] : []),
    ...(args['event-idx'] ? [VIRTIO_RING_F_EVENT_IDX] : []),
    ...(args.indirect ? [VIRTIO_RING_F_INDIRECT_DESC] : []),
  );
  const cards: VirtioUser[] = [];
  for (const [i, path] of args.socket.entries()) {
    const options = { path, mac: macOf(i), features, ringSize, bufferBytes, maxFrame, deadlineMs: CONNECT_MS };
    const card = await VirtioUser.connect(options);
    cards.push(card);
    const refused = features & ~card.features;
    if (refused !== 0n)
      throw new Error(`the switch does not offer all features: 0x${refused.toString(16)} are missing`);
  }
  return cards;
}

let device: Loopback | undefined;

/** Ports without a switch. */
function makeLoopback(): { ports: StaticPort[]; pairs: NetPair[] } {
  const layout = { pieces: 'one', indirect: false } as const;
  const options = {
    ringSize,
    packed: args.packed,
    inOrder: args['in-order'],
    eventIdx: false,
    headerLen: 12,
    maxFrame,
    bufferBytes,
    mergeable: false,
    txLayout: layout,
    rxLayout: layout,
  };
  const rams = Array.from({ length: nPorts }, () => new GuestRam([{ guestAddr: 2 ** 30, size: ringSize * 2 ** 14 }]));
  const pairs = rams.map((ram) => new NetPair(ram, options));
  const ports = pairs.map((pair, i) => portOf(i, pair, rams[i], 12));
  const drivers = pairs.flatMap(({ rings }) => rings.map(({ driver }) => driver));
  device = new Loopback(ports, drivers, 12 + size, args.rate === undefined ? [] : CARRIED);
  return { ports, pairs };
}

if (args.core !== undefined) pinThread([Number(args.core)]);
const load = { size, touch, ring: ringSize, ports: nPorts, oneWay: args['one-way'] };
if (loopback) {
  const { ports, pairs } = makeLoopback();
  const verified = await check(ports, 12, false);
  console.log(JSON.stringify({ ...load, loopback, verified, ...run(ports, 12) }));
  for (const pair of pairs) await pair.close();
} else {
  const startedAt = performance.now();
  const cards = await connect();
  const connectMs = performance.now() - startedAt;
  const firstFrameMs = await learn(cards, startedAt);
  const { headerLen } = cards[0];
  const ports = cards.map((card, i) => portOf(i, card.pairs[0], card.ram, headerLen));
  const verified = await check(ports, headerLen, true);
  const result = run(ports, headerLen);
  await sleep(0); // a connection that was lost meanwhile is noticed now
  if (cards.some((card) => !card.connected)) throw new Error('the switch closed a connection');
  console.log(JSON.stringify({ ...load, headerLen, connectMs, firstFrameMs, verified, ...result }));
  for (const card of cards) await card.close();
}
