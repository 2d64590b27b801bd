/** The device side of the rings, with inflight records: wherever it dies, each buffer comes back once, and no frame is lost. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { ChainLayout } from '../../src/port/net-queue.ts';
import { dieEverywhere, type Fate, runLives, type Step, steps } from '../kit/mortal-device.ts';
import { RecordedDevice, RecordedGuests, type RecordedOptions } from '../kit/recorded-device.ts';

const layout: fc.Arbitrary<ChainLayout> = fc.record({
  pieces: fc.constantFrom<ChainLayout['pieces']>('one', 'header', 17),
  indirect: fc.boolean(),
});

const options: fc.Arbitrary<RecordedOptions> = fc
  .record({
    format: fc.constantFrom('split', 'packed'),
    wrap: fc.boolean(),
    near: fc.nat(8),
    mergeable: fc.boolean(),
    inOrder: fc.boolean(),
    txLayout: layout,
    rxLayout: layout,
    lcores: fc.constantFrom(1, 2),
  })
  .map(({ format, wrap, near, ...more }) => ({
    ...more,
    ...(format === 'split'
      ? { format, txNum: 8, rxNum: 16, start: wrap ? 0xffff - near : near }
      : { format, txNum: 9, rxNum: 17, start: (wrap ? 0x8000 : 0) | near }),
  }));

type Anywhere = (life: number) => boolean;

/** @param anywhere whether that life can end at each store, or between two bursts */
function run(options: RecordedOptions, all: readonly Step[], fate: Fate, anywhere: Anywhere = () => true): number[] {
  const guests = new RecordedGuests(options);
  try {
    let lives = -1; // one is born and never starts
    let device = new RecordedDevice(guests, true);
    const born = () => {
      device = new RecordedDevice(guests, anywhere(Math.max(0, lives++)));
      return device;
    };
    const stores = runLives(born, guests, all, fate);
    device.writer.dieAfter = Number.POSITIVE_INFINITY;
    guests.assertWhole(() => device.writer.live(() => device.poll()));
    return stores;
  } finally {
    guests.close();
  }
}

/** A frame is several dozen stores. */
const store = fc.oneof(fc.nat(40), fc.nat(400), fc.nat(2000));
const deaths: fc.Arbitrary<Fate> = fc.record({
  dieAfter: fc.array(store, { maxLength: 12 }),
  meanwhile: fc.nat(3),
});

/** Runs the property, and sees to it that devices died. */
function checkDeaths(fates: fc.Arbitrary<Fate>, anywhere: Anywhere): void {
  let died = 0;
  fc.assert(
    fc.property(options, steps, fates, (some, all, fate) => {
      died += run(some, all, fate, anywhere).length - 1;
    }),
    { numRuns: 400 },
  );
  assert.ok(died > 400, `only ${died} deaths`);
}

test('rings with records: whenever and however often the device dies, each buffer comes back once, and each frame arrives', () => {
  checkDeaths(deaths, () => true);
});

test('rings with records: WebAssembly goes on behind what was left to do, and what it leaves is gone on with', () => {
  const pair = fc.tuple(store, fc.nat(3));
  const byTurns = fc.record({
    dieAfter: fc.array(pair, { maxLength: 6 }).map((pairs) => pairs.flat()),
    meanwhile: fc.nat(3),
  });
  checkDeaths(byTurns, (life) => life % 2 === 0);
});

const SIMPLE: RecordedOptions = {
  format: 'split',
  txNum: 8,
  rxNum: 16,
  start: 0xffff,
  mergeable: false,
  inOrder: false,
  txLayout: { pieces: 'one', indirect: false },
  rxLayout: { pieces: 'one', indirect: false },
  lcores: 1,
};
const CHAINED: RecordedOptions = {
  ...SIMPLE,
  mergeable: true,
  txLayout: { pieces: 'header', indirect: false },
  rxLayout: { pieces: 17, indirect: false },
};

const FEW_FRAMES: readonly Step[] = [
  { what: 'offer', n: 2, seed: 0 },
  { what: 'take', n: 1, seed: 0 },
  { what: 'collect', n: 1, seed: 0 },
  { what: 'offer', n: 2, seed: 0 },
  { what: 'take', n: 1, seed: 0 },
];

for (const format of ['split', 'packed'] as const) {
  for (const [name, some] of Object.entries({
    'plain buffers': SIMPLE,
    'chains, of which several make a frame': CHAINED,
  })) {
    test(`rings with records: a ${format} device may die at each store, with ${name}`, () => {
      const start = format === 'split' ? some.start : 0x8000 | (some.txNum - 1);
      dieEverywhere(FEW_FRAMES, 1, (all, fate) => run({ ...some, format, start }, all, fate));
    });
  }
}
