/**
 * The load of the uplink benchmark, a process of its own with one pinned thread: a guest's card on the switch under test, and the
 * world's end of its uplink. Prints one line of JSON.
 *
 *   node bench/uplink-load.ts --socket S --interface FAR --direction up|down|both [--core 1] [--size 64] [--gso] [--ring 256]
 *                             [--burst 32] [--seconds 2] [--warmup 0.5] [--plain] [--watch PID]
 *   node bench/uplink-load.ts --interface FAR --direction limit …     what the sender at the world's end can do, without a switch
 */
import { readdirSync, readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { VirtioUser } from '../src/port/virtio-user.ts';
import { pinThread } from '../src/sys/affinity.ts';
import { featureMask, VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX } from '../src/uapi/virtio.ts';
import {
  VIRTIO_NET_F_CSUM,
  VIRTIO_NET_F_GUEST_CSUM,
  VIRTIO_NET_F_GUEST_TSO4,
  VIRTIO_NET_F_HOST_TSO4,
  VIRTIO_NET_F_MRG_RXBUF,
  VIRTIO_NET_HDR_F_NEEDS_CSUM,
  VIRTIO_NET_HDR_GSO_TCPV4,
} from '../src/uapi/virtio-net.ts';
import { packet } from '../test/kit/packets.ts';
import { RawSocket } from '../test/peers/veth.ts';
import { ADDRESSES_LEN, frameOf, macOf } from './frames.ts';
import { StaticPort } from './static-port.ts';
import { receivedAt, WorldSender } from './uplink-world.ts';

const CONNECT_MS = 5000;
const LEARN_MS = 15_000;
const CHECK_MS = 5000;
const LOOK_MS = 20;
/** No frame for so long: nothing is on the way. */
const QUIET_MS = 50;
/** Frames verified in each direction, and how many of them are on the way at a time. */
const VERIFIED = 384;
const ON_THE_WAY = 16;
const TURNS_PER_LOOK_AT_CLOCK = 64;
/** Payload of the segments that a frame of 64 KiB stands for: MTU 1500, IPv4, no TCP options. */
const MSS = 1460;
/** 1000 / USER_HZ: the unit of times in /proc/PID/stat. */
const MS_PER_TICK = 10;
const GUEST = 0;
const WORLD = 1;

const { values: args } = parseArgs({
  options: {
    socket: { type: 'string' },
    interface: { type: 'string', default: '' },
    direction: { type: 'string', default: 'up' },
    core: { type: 'string' },
    size: { type: 'string', default: '64' },
    gso: { type: 'boolean', default: false },
    ring: { type: 'string', default: '256' },
    burst: { type: 'string', default: '32' },
    seconds: { type: 'string', default: '2' },
    warmup: { type: 'string', default: '0.5' },
    // without mergeable receive buffers
    plain: { type: 'boolean', default: false },
    // the switch, of whose busiest thread the processor time is told
    watch: { type: 'string' },
  },
});
const { gso, direction } = args;
const far = args.interface;
const size = Number(args.size);
const ringSize = Number(args.ring);
const burst = Math.min(Number(args.burst), ringSize / 2);
const up = direction === 'up' || direction === 'both';
const down = direction === 'down' || direction === 'both' || direction === 'limit';
if (!up && !down) throw new RangeError('--direction is up, down, both or limit');

/** A TCP packet that leaves its segmentation and checksum to others. */
const SEGMENTS = gso ? packet({ version: 4, protocol: 'tcp', payload: new Uint8Array(size - 54) }) : undefined;

/** The frame `n` that one end sends to the other. */
function frameFrom(from: number, n: number): Uint8Array {
  const frame = frameOf(from, 1 - from, size, n);
  if (SEGMENTS === undefined) return frame;
  // all of it but the addresses, up to the payload; the frame's number is in what follows
  frame.set(SEGMENTS.bytes.subarray(ADDRESSES_LEN, SEGMENTS.payloadOff), ADDRESSES_LEN);
  frame[SEGMENTS.payloadOff] = n >> 8;
  frame[SEGMENTS.payloadOff + 1] = n;
  return frame;
}

const framesFrom = (from: number) => Array.from({ length: ringSize }, (_, n) => frameFrom(from, n));

/** The virtio_net_hdr of every frame; `num_buffers` in it is 0, as drivers have it. */
const HEADER = new Uint8Array(12);
if (SEGMENTS !== undefined) {
  const { payloadOff, csumStart, csumOffset } = SEGMENTS;
  HEADER[0] = VIRTIO_NET_HDR_F_NEEDS_CSUM;
  HEADER[1] = VIRTIO_NET_HDR_GSO_TCPV4;
  new Uint16Array(HEADER.buffer).set([payloadOff, MSS, csumStart, csumOffset], 1);
}
const NET_HEADER =
  SEGMENTS === undefined
    ? {}
    : {
        flags: VIRTIO_NET_HDR_F_NEEDS_CSUM,
        gsoType: VIRTIO_NET_HDR_GSO_TCPV4,
        hdrLen: SEGMENTS.payloadOff,
        gsoSize: MSS,
        csumStart: SEGMENTS.csumStart,
        csumOffset: SEGMENTS.csumOffset,
      };

async function connect(path: string): Promise<VirtioUser> {
  const features = featureMask(
    VIRTIO_F_VERSION_1,
    ...(args.plain ? [] : [VIRTIO_NET_F_MRG_RXBUF]),
    VIRTIO_RING_F_EVENT_IDX,
    ...(gso ? [VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_GUEST_TSO4] : []),
  );
  const room = Math.max(size, 1522);
  // a frame is in one buffer, also the longest
  const bufferBytes = Math.max(2048, Math.ceil((12 + room) / 64) * 64);
  const card = await VirtioUser.connect({
    ...{ path, mac: macOf(GUEST), features, ringSize, bufferBytes, maxFrame: room },
    deadlineMs: CONNECT_MS,
  });
  const refused = features & ~card.features;
  if (refused !== 0n) throw new Error(`the switch does not offer all features: 0x${refused.toString(16)} are missing`);
  return card;
}

/** Frames of ours, and not what else the kernel may have to say: by their length and what is behind the addresses. */
const isOurs = (frame: Uint8Array) =>
  frame.length === size && frame[12] === (gso ? 0x08 : 0x88) && frame[13] === (gso ? 0x00 : 0xb5);

const sameBehindAddresses = (a: Uint8Array, b: Uint8Array) =>
  Buffer.compare(a.subarray(ADDRESSES_LEN), b.subarray(ADDRESSES_LEN)) === 0;

function nextAtWorld(world: RawSocket): Uint8Array | undefined {
  for (let frame = world.receive(); frame !== undefined; frame = world.receive()) if (isOurs(frame)) return frame;
  return undefined;
}

function nextAtGuest(card: VirtioUser): Uint8Array | undefined {
  for (let frame = card.receive(); frame !== undefined; frame = card.receive()) if (isOurs(frame)) return frame;
  return undefined;
}

/** Sends from both ends until both have received, then until all is quiet. @returns ms to the first frame */
async function learn(card: VirtioUser, world: RawSocket, sender: WorldSender, startedAt: number): Promise<number> {
  let firstMs = 0;
  let [atWorld, atGuest] = [false, false];
  for (const giveUpAt = performance.now() + LEARN_MS; !atWorld || !atGuest; ) {
    if (performance.now() > giveUpAt) throw new Error(`no frame reaches the ${atWorld ? 'guest' : 'world'}`);
    if (!atWorld) {
      card.send(frameFrom(GUEST, 0), NET_HEADER);
      card.flush();
    } else sender.send(1);
    await sleep(LOOK_MS);
    atWorld ||= nextAtWorld(world) !== undefined;
    atGuest ||= nextAtGuest(card) !== undefined;
    if (firstMs === 0 && (atWorld || atGuest)) firstMs = performance.now() - startedAt;
  }
  for (let quietAt = performance.now() + QUIET_MS; performance.now() < quietAt; await sleep(1)) {
    card.pairs[0].tx.reapAll();
    const { nFree, size: all } = card.pairs[0].tx.ring;
    if (nextAtWorld(world) !== undefined || nextAtGuest(card) !== undefined || nFree < all)
      quietAt = performance.now() + QUIET_MS;
  }
  return firstMs;
}

/** Sends frames slowly: every one must arrive, in order and unharmed. */
async function check(
  from: number,
  first: number,
  send: (n: number) => void,
  next: () => Uint8Array | undefined,
): Promise<void> {
  const way = from === GUEST ? 'guest to world' : 'world to guest';
  for (let done = 0, sent = 0; done < VERIFIED; done++) {
    for (; sent < VERIFIED && sent - done < ON_THE_WAY; sent++) send((first + sent) % ringSize);
    let frame = next();
    for (const giveUpAt = performance.now() + CHECK_MS; frame === undefined; frame = next()) {
      if (performance.now() > giveUpAt) throw new Error(`check, ${way}: frame ${done} of ${VERIFIED} does not arrive`);
      await sleep(0);
    }
    if (!sameBehindAddresses(frame, frameFrom(from, (first + done) % ringSize)))
      throw new Error(`check, ${way}: frame ${done} is not as it was sent, or out of order`);
  }
}

/** Both directions, before anything is measured. */
async function checkBoth(card: VirtioUser, world: RawSocket, sender: WorldSender): Promise<void> {
  const fromGuest = (n: number) => {
    if (!card.send(frameFrom(GUEST, n), NET_HEADER)) throw new Error('check: the transmit ring is full');
    card.flush();
  };
  await check(GUEST, 0, fromGuest, () => nextAtWorld(world));
  // the sender goes on where learning has left it
  const first = (sender.sent + sender.refused) % ringSize;
  await check(
    WORLD,
    first,
    () => sender.send(1),
    () => nextAtGuest(card),
  );
}

/** The guest's rings with frames laid out in them, whose transmit ring must be empty. */
function takeOver(card: VirtioUser): StaticPort {
  card.pairs[0].tx.reapAll();
  const port = new StaticPort(card.pairs[0], card.ram, framesFrom(GUEST), card.headerLen);
  for (let n = 0; n < ringSize; n++) port.bytes(port.tx, n, 0, card.headerLen).set(HEADER.subarray(0, card.headerLen));
  return port;
}

/** The hot loop. @returns seconds it ran, and turns */
function drive(port: StaticPort | undefined, sender: WorldSender | undefined, seconds: number) {
  const from = performance.now();
  const until = from + seconds * 1000;
  // sending takes so long that whatever has come meanwhile is taken
  const least = sender === undefined ? burst : 1;
  let turns = 0;
  do {
    for (let turn = 0; turn < TURNS_PER_LOOK_AT_CLOCK; turn++) {
      if (sender !== undefined) sender.send(burst);
      if (port !== undefined) port.poll(least, false);
    }
    turns += TURNS_PER_LOOK_AT_CLOCK;
  } while (performance.now() < until);
  return { seconds: (performance.now() - from) / 1000, turns };
}

/** How often something else was given this thread's core: a run with many of these is worth nothing. */
function preemptions(): number {
  return Number(/^nonvoluntary_ctxt_switches:\s*(\d+)/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1]);
}

/** Processor time of each thread of a process so far, ms: in the program, and in the kernel for it. */
function threadTimes(pid: string): Map<string, { user: number; system: number }> {
  return new Map(
    readdirSync(`/proc/${pid}/task`).map((thread) => {
      const stat = readFileSync(`/proc/${pid}/task/${thread}/stat`, 'utf8');
      const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
      return [thread, { user: Number(fields[11]) * MS_PER_TICK, system: Number(fields[12]) * MS_PER_TICK }];
    }),
  );
}

/** What the thread that has worked most since `before` has used. */
function busiest(pid: string, before: ReturnType<typeof threadTimes>): { user: number; system: number } {
  const used = [...threadTimes(pid)].map(([thread, { user, system }]) => {
    const was = before.get(thread) ?? { user, system };
    return { user: user - was.user, system: system - was.system };
  });
  return used.reduce((most, one) => (one.user + one.system > most.user + most.system ? one : most));
}

function count(port: StaticPort | undefined, sender: WorldSender | undefined) {
  const { packets, bytes } = receivedAt(far);
  return {
    preempted: preemptions(),
    up: { sent: port?.tx.total ?? 0, packets, bytes },
    // frames that the interface refused have been offered like the others
    down: { sent: (sender?.sent ?? 0) + (sender?.refused ?? 0), packets: port?.rx.total ?? 0 },
    taken: sender?.sent ?? 0,
    foundTx: port?.tx.found ?? 0,
  };
}

/** What one direction did. `received`: frames, of the size that was sent */
const way = (sent: number, received: number, seconds: number) => ({
  sent,
  received,
  mpps: received / seconds / 1e6,
  gbps: (8 * size * received) / seconds / 1e9,
  lossPercent: sent === 0 ? 0 : (100 * Math.max(0, sent - received)) / sent,
});

function measure(port: StaticPort | undefined, sender: WorldSender | undefined) {
  if (up && port !== undefined) port.start(false);
  drive(port, sender, Number(args.warmup));
  const { watch } = args;
  const times = watch === undefined ? undefined : threadTimes(watch);
  const before = count(port, sender);
  const { seconds, turns } = drive(port, sender, Number(args.seconds));
  const after = count(port, sender);
  const cpuMs = watch === undefined || times === undefined ? undefined : busiest(watch, times);
  for (let quietAt = performance.now() + QUIET_MS; port !== undefined && performance.now() < quietAt; )
    if (port.drain()) quietAt = performance.now() + QUIET_MS;
  const directions: Record<string, ReturnType<typeof way>> = {};
  if (up) {
    const packets = after.up.packets - before.up.packets;
    const bytes = after.up.bytes - before.up.bytes;
    // each of the two looks may have found a frame half counted
    if (Math.abs(bytes - packets * size) > 2 * size)
      throw new Error(`${packets} packets of ${bytes} bytes came: they are not those of ${size} bytes that were sent`);
    directions.up = way(after.up.sent - before.up.sent, packets, seconds);
  }
  if (port !== undefined && down)
    directions.down = way(after.down.sent - before.down.sent, after.down.packets - before.down.packets, seconds);
  if (direction === 'limit') directions.limit = way(after.taken - before.taken, after.taken - before.taken, seconds);
  for (const [name, { received }] of Object.entries(directions))
    if (received === 0) throw new Error(`${name}: no frame arrived in ${seconds.toFixed(1)} s`);
  const inOrder =
    port === undefined || [port.rx, port.tx].every((ring) => ring.inOrder(Math.min(ring.total, ringSize)));
  const all = Object.values(directions);
  return {
    seconds,
    mpps: all.reduce((sum, { mpps }) => sum + mpps, 0),
    gbps: all.reduce((sum, { gbps }) => sum + gbps, 0),
    directions,
    inOrder,
    preempted: after.preempted - before.preempted,
    cpuMs,
    /** looks at the guest's transmit ring that found less than a burst: with none the guest would be the limit */
    waitPercent: direction === 'up' ? 100 * (1 - (after.foundTx - before.foundTx) / turns) : undefined,
  };
}

if (args.core !== undefined) pinThread([Number(args.core)]);
const sender = new WorldSender(far, framesFrom(WORLD), HEADER, burst);
const load = { size, gso, direction, ring: ringSize };
if (direction === 'limit') {
  console.log(JSON.stringify({ ...load, ...measure(undefined, sender) }));
} else {
  if (args.socket === undefined) throw new RangeError('--socket is missing');
  const startedAt = performance.now();
  const card = await connect(args.socket);
  const world = new RawSocket(far);
  const firstFrameMs = await learn(card, world, sender, startedAt);
  await checkBoth(card, world, sender);
  world.close(); // from now on the kernel finds nobody who wants the frames, and throws them away
  const result = measure(takeOver(card), down ? sender : undefined);
  await sleep(0); // a connection that was lost meanwhile is noticed now
  if (!card.connected) throw new Error('the switch closed the connection');
  console.log(JSON.stringify({ ...load, firstFrameMs, verified: 2 * VERIFIED, ...result }));
  await card.close();
}
sender.close();
