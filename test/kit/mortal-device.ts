/** Runs a device that dies between two stores, as often as it likes, against a driver that goes on meanwhile. */
import assert from 'node:assert/strict';
import fc from 'fast-check';
import type { DyingWriter } from './dying-memory.ts';

/** Offers buffers, and asserts of each that it comes back once and is the one offered. */
export interface MortalDriver {
  readonly outstanding: number;
  /** Makes up to `n` buffers available; `seed` makes for variety. */
  offer(n: number, seed: number): void;
  /** Takes what was used. @returns what the buffers were offered for, a number for each */
  collect(): number[];
}

/** One life of a device. What it does in the ring and the records it does by way of its writer. */
export interface MortalDevice {
  readonly writer: DyingWriter;
  /** what the buffers that it has were offered for */
  readonly wishes: readonly number[];
  start(): void;
  take(n: number): void;
  /** Hands back up to `n` of the buffers it has, from one that `seed` chooses. */
  use(n: number, seed: number): void;
}

export interface Step {
  readonly what: 'offer' | 'collect' | 'take' | 'use';
  readonly n: number;
  readonly seed: number;
}

export const steps = fc.array(
  fc.record({
    what: fc.constantFrom('offer', 'offer', 'collect', 'take', 'take', 'use', 'use'),
    n: fc.integer({ min: 1, max: 8 }),
    seed: fc.nat(1000),
  }) as fc.Arbitrary<Step>,
  { minLength: 1, maxLength: 60 },
);

/** When the device dies, and what the driver does before the next one is there. */
export interface Fate {
  /** stores in each life but the last */
  readonly dieAfter: readonly number[];
  /** buffers the driver offers between two lives, as far as it can */
  readonly meanwhile: number;
}

export const fates: fc.Arbitrary<Fate> = fc.record({
  dieAfter: fc.array(fc.oneof(fc.nat(20), fc.nat(200)), { maxLength: 12 }),
  meanwhile: fc.nat(3),
});

/** Runs the steps, then goes on until every buffer is back. @returns stores in each life */
export function runLives(
  born: () => MortalDevice,
  driver: MortalDriver,
  all: readonly Step[],
  { dieAfter, meanwhile }: Fate,
): number[] {
  const stores: number[] = [];
  let device = born();
  const start = () => {
    for (;;) {
      device = born();
      device.writer.dieAfter = dieAfter[stores.length] ?? Number.POSITIVE_INFINITY;
      if (device.writer.live(() => device.start())) return;
      stores.push(device.writer.stores);
    }
  };
  const act = (what: (alive: MortalDevice) => void) => {
    if (device.writer.live(() => what(device))) return;
    stores.push(device.writer.stores);
    driver.collect();
    driver.offer(meanwhile, stores.length);
    start();
  };
  const collect = () => {
    const { wishes } = device;
    for (const wish of driver.collect())
      assert.ok(!wishes.includes(wish), `${wish} looks used, and the device still has it`);
  };
  start();
  for (const { what, n, seed } of all) {
    if (what === 'offer') driver.offer(n, seed);
    else if (what === 'collect') collect();
    else act((alive) => alive[what](n, seed));
  }
  for (let i = 0; i < 100 && driver.outstanding > 0; i++) {
    act((alive) => alive.take(8));
    act((alive) => alive.use(1 + (i % 3), i));
    collect();
  }
  assert.equal(driver.outstanding, 0, 'every buffer came back');
  return [...stores, device.writer.stores];
}

/** Some of everything: batches that wrap, buffers used out of order, more offered while some are held. */
export const SCENARIO: readonly Step[] = Array.from({ length: 6 }, (_, i): Step[] => [
  { what: 'offer', n: 5, seed: i },
  { what: 'take', n: 3, seed: 0 },
  { what: 'use', n: 2, seed: 1 },
  { what: 'collect', n: 1, seed: 0 },
  { what: 'offer', n: 2, seed: 3 * i },
  { what: 'take', n: 8, seed: 0 },
  { what: 'use', n: i % 2 === 0 ? 8 : 2, seed: i },
  { what: 'use', n: 3, seed: 0 },
]).flat();

/** Has `run` die at each store that the steps cause, and at each of the first `recovery` ones of the life that follows. */
export function dieEverywhere(
  all: readonly Step[],
  recovery: number,
  run: (all: readonly Step[], fate: Fate) => number[],
): void {
  const [stores] = run(all, { dieAfter: [], meanwhile: 0 });
  for (const meanwhile of [0, 3])
    for (let first = 0; first < stores; first++)
      for (let second = 0; second <= recovery; second++) run(all, { dieAfter: [first, second], meanwhile });
}
