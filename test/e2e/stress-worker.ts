/**
 * The guests of the stress test, on a thread of their own: steady cards that send to each other, and a talker that sends to cards which come
 * and go. Meanwhile pairs are disabled and enabled, queues move, and dirty pages are logged. Now and then all is quiet, and single bursts
 * must wake the lcores.
 */
import assert from 'node:assert/strict';
import { setImmediate as yieldNow } from 'node:timers/promises';
import { parentPort, workerData } from 'node:worker_threads';
import { macOf } from '../../bench/frames.ts';
import { DEFAULT_FEATURES } from '../../src/port/virtio-user.ts';
import { VHOST_USER_PROTOCOL_F_LOG_SHMFD, VHOST_VRING_F_LOG } from '../../src/uapi/vhost-user.ts';
import { featureMask, VHOST_F_LOG_ALL, VIRTIO_F_IN_ORDER, VIRTIO_F_VERSION_1 } from '../../src/uapi/virtio.ts';
import { GuestLog, PAGE } from '../kit/guest-log.ts';
import { BASIC_PROTOCOL } from './step-card.ts';
import { COMERS, Ledger, RING_SIZE, STEADY, StressCard, type StressCardOptions, TALKER } from './stress-card.ts';

export interface StressTask {
  readonly path: string;
  /** frames to be received */
  readonly packets: number;
  readonly lcores: number;
}

/** What the main thread is asked to do, as only it can; answered by any message. */
export interface MoveRequest {
  readonly move: { readonly mac: string; readonly pair: number; readonly lcore: number };
}

/** What became of it all, for the main thread to hold against the switch's counters. */
export interface StressReport {
  /** by address, of cards that stay: buffers that the device has used */
  readonly cards: Record<string, { readonly taken: number; readonly delivered: number }>;
  /** frames of the steady cards that reached one of them; of cards that came and went, those that the switch has taken */
  readonly steadyReceived: number;
  readonly comersTaken: number;
  readonly received: number;
  readonly did: { readonly comers: number; readonly pauses: number; readonly moves: number; readonly logs: number };
}

const EPOCHS = 4;
const TURNS_PER_SLICE = 16;
const FRAMES_PER_WAKE_ROUND = 4000;
/** An lcore that has slept through a kick wakes after a second by itself. */
const LOST_WAKEUP_MS = 990;

const { path, packets, lcores } = workerData as StressTask;
const main = parentPort as NonNullable<typeof parentPort>;
const ledger = new Ledger();
const cards = new Set<StressCard>();
const did = { comers: 0, pauses: 0, moves: 0, logs: 0 };
let comersTaken = 0;
let stopping = false;
let failed: Error | undefined;

const FORMATS: Partial<StressCardOptions>[] = [
  { pairs: 2 },
  { pairs: 2, packed: true },
  { features: DEFAULT_FEATURES | featureMask(VIRTIO_F_IN_ORDER), packed: true },
  { pairs: 2, features: featureMask(VIRTIO_F_VERSION_1) },
];

async function add(n: number, peers: readonly number[]): Promise<StressCard> {
  const protocol = [...BASIC_PROTOCOL, VHOST_USER_PROTOCOL_F_LOG_SHMFD];
  const card = await StressCard.connect({ path, n, peers, protocol, ...FORMATS[n % FORMATS.length] }, ledger);
  cards.add(card);
  return card;
}

/** A slice of all cards' work. */
function work(): number {
  let n = 0;
  for (let turn = 0; turn < TURNS_PER_SLICE; turn++) for (const card of cards) n += card.turn();
  const now = performance.now();
  for (const card of cards) card.assertServed(now);
  return n;
}

async function workUntil(done: () => boolean): Promise<void> {
  while (!done()) {
    if (failed !== undefined) throw failed;
    work();
    await yieldNow();
  }
}

/** Until `n` frames more have come, or the epoch ends. */
async function more(n: number): Promise<void> {
  for (const target = ledger.total + n; ledger.total < target && !stopping; ) await yieldNow();
}

async function pausing(): Promise<void> {
  const steady = [...cards].filter(({ n }) => STEADY.includes(n));
  for (let i = 0; !stopping; i++) {
    const { step } = steady[i % steady.length];
    const pair = i % step.pairs.length;
    // both directions, or one alone
    const vrings = [2 * pair, 2 * pair + 1].filter((_, which) => i % 3 !== which);
    for (const vring of vrings) await step.frontEnd.setVringEnable(vring, false);
    await more(500);
    for (const vring of vrings) await step.frontEnd.setVringEnable(vring, true);
    did.pauses++;
    await more(2000);
  }
}

async function moving(): Promise<void> {
  for (let i = 0; !stopping; i++) {
    const n = i % (TALKER + 1);
    const card = [...cards].find((one) => one.n === n) as StressCard;
    const { promise, resolve } = Promise.withResolvers<boolean>();
    main.once('message', resolve);
    const pair = (i >> 2) % card.step.pairs.length;
    main.postMessage({ move: { mac: macOf(n), pair, lcore: (i >> 1) % lcores } } satisfies MoveRequest);
    assert.equal(await promise, true, `the queue of card ${n} is there`);
    did.moves++;
    await more(1000);
  }
}

/** As a migration begins and is called off: every page that the switch writes meanwhile is logged. */
async function logging(): Promise<void> {
  const steady = [...cards].filter(({ n }) => STEADY.includes(n));
  for (let i = 0; !stopping; i++) {
    const card = steady[i % steady.length];
    const { step } = card;
    const [{ guestAddr, size }] = step.ram.regions;
    const log = new GuestLog(guestAddr + size);
    const told = async (features: bigint, flags: number) => {
      await step.frontEnd.setFeatures(step.features | features);
      for (const index of step.vrings) await step.frontEnd.setVringAddr(index, step.addresses(index, flags));
    };
    await step.frontEnd.setLogBase(log.area);
    await told(featureMask(VHOST_F_LOG_ALL), VHOST_VRING_F_LOG);
    const before = card.deliveredTo(0);
    while (card.deliveredTo(0) < before + 2 * RING_SIZE && !stopping) await more(200);
    const complete = card.deliveredTo(0) >= before + 2 * RING_SIZE;
    await told(0n, 0);
    const pages = log.take();
    if (complete)
      for (const addr of card.receiveBuffers)
        assert.ok(pages.has(Math.floor(addr / PAGE)), `a receive buffer of card ${card.n} was written and not logged`);
    log.close();
    did.logs++;
    await more(3000);
  }
}

/** Comes, is talked to, and goes in the middle of it: what it has sent itself is with the switch. */
async function coming(n: number): Promise<void> {
  while (!stopping) {
    const card = await add(n, [TALKER]);
    card.sending = true;
    card.send(RING_SIZE);
    await more(3000);
    card.sending = false;
    while (!card.idle) await yieldNow();
    cards.delete(card);
    card.turn();
    comersTaken += card.taken;
    await card.step.close();
    did.comers++;
  }
}

/** No card sends, and all that was sent has been taken and received. */
async function settle(): Promise<void> {
  for (const card of cards) card.sending = false;
  await workUntil(() => [...cards].every(({ idle }) => idle));
  work();
}

/** Single bursts, each when the one before has arrived: none may find its lcore asleep for good. */
async function wakeUps(): Promise<void> {
  for (let round = 0; round < packets / EPOCHS / FRAMES_PER_WAKE_ROUND; round++) {
    const from = performance.now();
    const card = [...cards][round % cards.size];
    card.send(1 + (round % 16));
    await workUntil(() => card.idle);
    const ms = performance.now() - from;
    assert.ok(ms < LOST_WAKEUP_MS, `card ${card.n} was taken notice of after ${ms.toFixed(0)} ms: a kick was lost`);
    // the lcores fall asleep after at most 200 µs, sooner, or not yet
    for (const until = performance.now() + (round % 8) / 10; performance.now() < until; );
  }
}

async function epoch(target: number): Promise<void> {
  stopping = false;
  for (const card of cards) {
    card.sending = true;
    card.send(RING_SIZE);
  }
  const doing = [pausing(), moving(), logging(), ...COMERS.map(coming)];
  for (const one of doing)
    one.catch((error) => {
      failed ??= error;
    });
  await workUntil(() => ledger.total >= target);
  stopping = true;
  let left = true;
  const all = Promise.all(doing).finally(() => {
    left = false;
  });
  await workUntil(() => !left);
  await all;
  await settle();
  await wakeUps();
  await settle();
}

for (const n of STEADY)
  await add(
    n,
    STEADY.filter((other) => other !== n),
  );
await add(TALKER, COMERS);
for (let n = 1; n <= EPOCHS; n++) await epoch((packets * n) / EPOCHS);

const staying = [...cards];
const report: StressReport = {
  cards: Object.fromEntries(staying.map(({ n, taken, delivered }) => [macOf(n), { taken, delivered }])),
  steadyReceived: ledger.sum(ledger.received, STEADY),
  comersTaken,
  received: ledger.total,
  did,
};
main.postMessage(report);
await new Promise((resolve) => main.once('message', resolve));
for (const { step } of staying) await step.close();
main.close();
