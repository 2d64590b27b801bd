import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { MacTable, macTableBytes, NOT_FOUND } from '../../src/switch/mac-table.ts';
import {
  FIXED,
  fixedPort,
  MacWriter,
  N,
  ROAMING,
  ROAMING_PORTS,
  SIZES,
  STABLE,
  STABLE_PORT,
} from '../kit/mac-table-worker.ts';

const { max, portMax, ports } = SIZES;

test('MAC table: while two threads learn, move, flush and age, nobody finds an address on a port it was never on', async () => {
  const memory = new SharedArrayBuffer(macTableBytes(max, ports));
  const table = new MacTable(max, portMax, ports, memory);
  for (let n = 0; n < N; n++) table.learn(STABLE, n, STABLE_PORT, 1_000_000);
  const control = new Int32Array(new SharedArrayBuffer(8));
  const writers = [1, 2].map((seed) => new MacWriter({ table: memory, control, seed }));
  while (Atomics.load(control, 1) < 100) await sleep(1);
  const found = new Map<string, number>();
  const note = (what: string) => found.set(what, (found.get(what) ?? 0) + 1);
  for (const until = performance.now() + 1500; performance.now() < until; await sleep(0))
    for (let n = 0; n < N; n++) {
      const [stable, fixed, roaming] = [STABLE, FIXED, ROAMING].map((first) => table.lookup(first, n));
      if (stable === STABLE_PORT) note('stable');
      else if (stable === NOT_FOUND) note('stable, busy');
      else assert.fail(`stable address ${n} on port ${stable}`);
      assert.ok(fixed === NOT_FOUND || fixed === fixedPort(n), `address ${n} of port ${fixedPort(n)} on port ${fixed}`);
      if (fixed !== NOT_FOUND) note('fixed');
      assert.ok(roaming === NOT_FOUND || (ROAMING_PORTS as readonly number[]).includes(roaming), `on port ${roaming}`);
      if (roaming !== NOT_FOUND) note('roaming');
    }
  Atomics.store(control, 0, 1);
  await Promise.all(writers.map(({ ended }) => ended));
  const of = (what: string) => found.get(what) ?? 0;
  assert.ok(of('stable') > 1000 && of('fixed') > 100 && of('roaming') > 100, JSON.stringify([...found]));
  assert.ok(of('stable, busy') < of('stable') / 2, JSON.stringify([...found]));

  // at rest all is as one thread alone would have it
  for (let n = 0; n < N; n++) assert.equal(table.lookup(STABLE, n), STABLE_PORT);
  const perPort = Array.from({ length: ports }, (_, port) => table.addressesOf(port).length / 2);
  assert.equal(
    perPort.reduce((sum, n) => sum + n, 0),
    table.size,
  );
  for (let port = 0; port < ports; port++) table.flushPort(port);
  assert.equal(table.size, 0);
});
