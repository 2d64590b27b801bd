/**
 * Traffic of testpmd's own for tests: plans, and makers and verifiers on a thread of the test.
 */
import { openWindow } from '../../src/mem/window.ts';
import {
  FlowVerifier,
  VerifierCounters,
  type VerifierMemory,
  verifierMemory,
} from '../../src/testpmd/traffic/flow-verifier.ts';
import { FrameMaker } from '../../src/testpmd/traffic/frame-maker.ts';
import type { NumberRange, TrafficPlan } from '../../src/testpmd/traffic/traffic-plan.ts';
import { TestThread } from './device-ports.ts';
import { pool } from './ram.ts';

const range = (first: number, count = 1): NumberRange => ({ first, count });

export const PLAN: TrafficPlan = {
  flows: 4,
  sizes: { list: [64] },
  srcMac: range(0x020000000001),
  dstMac: range(0x525400000002),
  srcIp: range(0x0a000001, 250),
  dstIp: range(0xc0a80001),
  srcPort: range(1024, 60000),
  dstPort: range(9),
  seed: 1,
};

/** A maker and a verifier of the same flows. */
export class TrafficBench {
  readonly thread = new TestThread();
  readonly memory: VerifierMemory;
  readonly counters: VerifierCounters;
  readonly verifier: FlowVerifier;
  readonly plan: TrafficPlan;
  readonly #handle = pool.acquire();
  maker: FrameMaker;

  constructor(plan: Partial<TrafficPlan> = {}, { fromFirst = true, flows = plan.flows ?? PLAN.flows } = {}) {
    this.plan = { ...PLAN, ...plan };
    this.memory = verifierMemory(flows);
    this.counters = new VerifierCounters(this.memory);
    this.verifier = new FlowVerifier(this.memory, fromFirst);
    this.thread.windows[this.#handle.id] = openWindow(this.#handle);
    this.maker = this.newMaker(0);
  }

  /** A maker that begins anew, in the same memory. */
  newMaker(run: number): FrameMaker {
    this.maker = new FrameMaker(this.plan, this.thread.burst, this.thread.windows[this.#handle.id], 65536, run);
    return this.maker;
  }

  /** The next `n` frames, copied. */
  make(n: number): Buffer[] {
    const frames: Buffer[] = [];
    for (let left = n; left > 0; left -= 32) {
      this.maker.make(Math.min(left, 32));
      frames.push(...this.thread.frames());
    }
    return frames;
  }

  /** Has frames verified, in pieces of at most `piece` bytes. */
  verify(frames: readonly Buffer[], piece?: number): void {
    for (let at = 0; at < frames.length; at += 32) {
      this.thread.fill(frames.slice(at, at + 32), piece);
      this.verifier.verify(this.thread.burst, this.thread.windows);
    }
  }

  /** What has been counted of all flows, without bytes. */
  get totals() {
    const { counters } = this;
    const of = (name: Parameters<VerifierCounters['total']>[0]) => counters.total(name);
    return {
      ...{ received: of('received'), lost: of('lost'), reordered: of('reordered'), duplicated: of('duplicated') },
      ...{ late: of('late'), damaged: of('damaged'), foreign: counters.foreign, unknown: counters.unknownFlow },
    };
  }

  close(): void {
    this.thread.close();
    pool.release(this.#handle);
  }
}

export const CLEAN = { received: 0, lost: 0, reordered: 0, duplicated: 0, late: 0, damaged: 0, foreign: 0, unknown: 0 };
