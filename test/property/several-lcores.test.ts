/** Several lcores of one switch, taking turns on one thread in every order that fast-check thinks of: what they share stays whole. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { Lcore } from '../../src/lcore/lcore.ts';
import { counterBlock, LCORE_SLOTS, PORT_SLOTS, readCounters, VRING_SLOTS } from '../../src/stats/counters.ts';
import { sharedSwitchState } from '../../src/switch/learner.ts';
import type { SwitchConfig } from '../../src/switch/switch-config.ts';
import { Caller } from '../../src/sys/eventfd.ts';
import { VRING_DESC_F_WRITE } from '../../src/uapi/virtio-ring.ts';
import { sharedRingState } from '../../src/virtqueue/vring.ts';
import { frame, mac } from '../kit/frames.ts';
import { pool, Ram } from '../kit/ram.ts';
import { RawSplitRing } from '../kit/raw-split-ring.ts';

const CONFIG: SwitchConfig = {
  ...{ learning: 'dynamic', vm2vm: 1, macAgeing: 300, macTableSize: 1024, macLimit: 512, maxPorts: 4 },
};
const NUM = 16;
const BUFFER = 256;
const HEADER = 12;
const [RX, TX] = [0, 1];
const SHARED = 2;
const target = mac(0x77);
const source = (lcore: number) => mac(0x10 + lcore);

/** A guest whose receive queue all lcores fill, and whose transmit queue the first of them polls. */
class Guest {
  readonly id: number;
  readonly ram = new Ram();
  readonly rx: RawSplitRing;
  readonly tx: RawSplitRing;
  readonly #buffers: number[] = [];
  readonly #slot: { addr: number; off: number };
  seen = 0;

  constructor(id: number, eventIdx: boolean) {
    this.id = id;
    this.rx = new RawSplitRing(this.ram, NUM, { eventIdx });
    this.tx = new RawSplitRing(this.ram, NUM, { eventIdx });
    for (let i = 0; i < NUM; i++) {
      const { addr, off } = this.ram.alloc(BUFFER);
      this.#buffers.push(off);
      this.rx.describe(i, { addr, len: BUFFER }, VRING_DESC_F_WRITE);
    }
    this.#slot = this.ram.alloc(NUM * BUFFER);
  }

  offer(n: number): void {
    for (let i = 0; i < n; i++) this.rx.offer(this.rx.availIdx & (NUM - 1));
    this.rx.publish();
  }

  send(bytes: Buffer): boolean {
    if (((this.tx.availIdx - this.tx.usedIdx) & 0xffff) === NUM) return false;
    const i = this.tx.availIdx & (NUM - 1);
    bytes.copy(this.ram.bytes, this.#slot.off + i * BUFFER + HEADER);
    this.tx.describe(i, { addr: this.#slot.addr + i * BUFFER, len: HEADER + bytes.length }, 0);
    this.tx.offer(i);
    this.tx.publish();
    return true;
  }

  received(): Buffer[] {
    const frames: Buffer[] = [];
    for (; this.seen !== this.rx.usedIdx; this.seen = (this.seen + 1) & 0xffff) {
      const { id, len } = this.rx.used(this.seen);
      frames.push(Buffer.from(this.ram.bytes.subarray(this.#buffers[id] + HEADER, this.#buffers[id] + len)));
    }
    return frames;
  }

  /** Receive buffers that the switch has. */
  get room(): number {
    return (this.rx.availIdx - this.rx.usedIdx) & 0xffff;
  }
}

/** Lcores that share a switch, each polling the guest of its number; all deliver to guest SHARED. */
class Lcores {
  readonly all: Lcore[];
  readonly blocks = new Map<string, SharedArrayBuffer>();
  state: SharedArrayBuffer | undefined;

  constructor(n: number) {
    const shared = sharedSwitchState(CONFIG);
    const nothing = () => {};
    const fault = (port: number, vring: number, what: number) => assert.fail(`fault ${what} of ${port}/${vring}`);
    const events = { onRegistered: nothing, onDuplicate: nothing, onMiss: nothing, onFault: fault };
    this.all = Array.from({ length: n }, () => {
      const counters = new Float64Array(counterBlock(LCORE_SLOTS));
      return new Lcore(CONFIG, counters, new Caller(new Int32Array(1), 0), pool.acquire(), events, shared);
    });
  }

  add({ id, ram }: Guest, to = this.all): void {
    for (const [i, lcore] of this.all.entries()) {
      if (!to.includes(lcore)) continue;
      const block = counterBlock(PORT_SLOTS);
      this.blocks.set(`${id}/${i}`, block);
      lcore.addPort(id, block);
      lcore.setMemory(id, ram.memory);
    }
  }

  startRx(guest: Guest): void {
    this.state = sharedRingState(guest.rx.config);
    for (const lcore of this.all)
      lcore.startVring(guest.id, RX, guest.rx.vring(), counterBlock(VRING_SLOTS), this.state);
  }

  /** One lcore after the other. @returns where the ring stands */
  stopRx(guest: Guest): number | undefined {
    let base: number | undefined;
    for (const lcore of this.all) base = lcore.stopVring(guest.id, RX);
    return base;
  }

  counter(id: number, name: keyof typeof PORT_SLOTS): number {
    return this.all.reduce((sum, _, i) => {
      const block = this.blocks.get(`${id}/${i}`);
      return sum + (block === undefined ? 0 : readCounters(PORT_SLOTS, block)[name]);
    }, 0);
  }
}

const step = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.record({ do: fc.constant('send' as const), lcore: fc.nat(1), n: fc.integer({ min: 1, max: 6 }) }),
  },
  { weight: 4, arbitrary: fc.record({ do: fc.constant('poll' as const), lcore: fc.nat(1), n: fc.constant(1) }) },
  {
    weight: 2,
    arbitrary: fc.record({
      do: fc.constant('offer' as const),
      lcore: fc.constant(0),
      n: fc.integer({ min: 1, max: NUM }),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({ do: fc.constant('restart' as const), lcore: fc.constant(0), n: fc.constant(0) }),
  },
);

test('several lcores: into one receive queue each source’s frames come once and in order; what has no room is counted', () => {
  fc.assert(
    fc.property(fc.array(step, { minLength: 1, maxLength: 120 }), fc.boolean(), (steps, eventIdx) => {
      const lcores = new Lcores(2);
      const guests = [0, 1, SHARED].map((id) => new Guest(id, eventIdx));
      for (const guest of guests) lcores.add(guest);
      const shared = guests[SHARED];
      lcores.startRx(shared);
      for (const [i, lcore] of lcores.all.entries()) lcore.startVring(i, TX, guests[i].tx.vring());
      // known from the start, so that nothing is flooded
      lcores.all[0].learn(SHARED, [{ mac: target, vlan: 0 }]);
      /** by source: sent, taken by the switch and delivered so far */
      const queues: [Buffer[], Buffer[]] = [[], []];
      let delivered = 0;
      let lost = 0;
      const look = () => {
        for (const got of shared.received()) {
          const from = got.subarray(6, 12).equals(source(0)) ? 0 : 1;
          const at = queues[from].findIndex((sent) => sent.equals(got));
          assert.ok(at >= 0, 'a frame that was not sent, or that came before');
          lost += at; // those before it in the queue never come any more
          queues[from].splice(0, at + 1);
          delivered++;
        }
      };
      for (const { do: what, lcore, n } of steps) {
        if (what === 'send')
          for (let i = 0; i < n; i++) {
            const bytes = frame(target, source(lcore), 64 + i);
            if (guests[lcore].send(bytes)) queues[lcore].push(bytes);
          }
        else if (what === 'poll') {
          const { room } = shared;
          const before = lcores.counter(SHARED, 'rx_drop_no_buffer');
          const waiting = (guests[lcore].tx.availIdx - guests[lcore].tx.usedIdx) & 0xffff;
          lcores.all[lcore].poll();
          const dropped = lcores.counter(SHARED, 'rx_drop_no_buffer') - before;
          assert.equal(dropped, Math.max(0, waiting - room), 'what fits is delivered, whichever lcore filled before');
          look();
          // what was dropped was the last of the burst
          queues[lcore].splice(queues[lcore].length - dropped, dropped);
        } else if (what === 'offer') shared.offer(Math.min(n, NUM - shared.room));
        else {
          assert.equal(lcores.stopRx(shared), shared.rx.usedIdx);
          lcores.startRx(shared);
        }
      }
      assert.equal(lost, 0);
      assert.equal(delivered, lcores.counter(SHARED, 'rx_packets'));
    }),
    { numRuns: 60 },
  );
});

test('several lcores: an address on a port that one of them does not have yet is not delivered there, and does no harm', () => {
  const lcores = new Lcores(2);
  const guests = [0, 1].map((id) => new Guest(id, false));
  lcores.add(guests[0]);
  lcores.add(guests[1], [lcores.all[0]]);
  lcores.all[0].learn(1, [{ mac: target, vlan: 0 }]);
  lcores.all[1].startVring(0, TX, guests[0].tx.vring());
  assert.ok(guests[0].send(frame(target, source(0))));
  assert.equal(lcores.all[1].poll(), 1);
  assert.deepEqual([lcores.counter(0, 'tx_packets'), lcores.counter(0, 'tx_drop_receiver')], [1, 1]);
  assert.equal(guests[0].tx.usedIdx, 1);
});
