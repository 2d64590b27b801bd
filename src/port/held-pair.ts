/**
 * A queue pair of a virtio-user port while a thread has it: whether its rings may be used, as the main thread says, and what became of
 * them (user-pair.ts).
 */
import type { WindowViews } from '../mem/window.ts';
import { Caller } from '../sys/eventfd.ts';
import {
  makeUserRing,
  PAIR_ABSENT,
  PAIR_FAULT,
  PAIR_FAULT_RING,
  PAIR_KICKING,
  PAIR_TURNS,
  PAIR_USED,
  PAIR_WANTED,
  type UserPairPlan,
} from './user-pair.ts';
import type { UserRing } from './user-ring.ts';
import type { UserStage } from './user-stage.ts';

export class HeldPair {
  readonly plan: UserPairPlan;
  readonly control: Int32Array;
  readonly rx: UserRing;
  readonly tx: UserRing;
  readonly #caller: Caller;
  /** the last wish that was looked at, and whether the rings are in use for it */
  #seen = 0;
  active = false;
  /** receive buffers that the burst at hand is in */
  consumed = 0;
  /** the back end has been asked for calls */
  calls = false;

  /** @param stage runs the rings; undefined: TypeScript does */
  constructor(plan: UserPairPlan, views: WindowViews, stage: UserStage | undefined) {
    this.plan = plan;
    this.control = new Int32Array(plan.control);
    this.rx = makeUserRing(plan.rx, views, stage?.ring(plan.rx.size));
    this.tx = makeUserRing(plan.tx, views, stage?.ring(plan.tx.size));
    this.#caller = new Caller(this.control, PAIR_KICKING);
    Atomics.store(this.control, PAIR_USED, 0);
  }

  /** True if the rings may be used now; to be asked before a burst. */
  held(): boolean {
    return Atomics.load(this.control, PAIR_WANTED) === this.#seen ? this.active : this.#turn();
  }

  /** The main thread wants something else. */
  #turn(): boolean {
    const { control } = this;
    this.letGo();
    const wanted = Atomics.load(control, PAIR_WANTED);
    this.#seen = wanted;
    if (wanted === 0) return false;
    Atomics.store(control, PAIR_USED, wanted);
    // Looked at again once it is told: either we see that the wish has changed, or the main thread sees that the rings are in use.
    if (Atomics.load(control, PAIR_WANTED) !== wanted) {
      Atomics.store(control, PAIR_USED, 0);
      this.#seen = 0;
      return false;
    }
    this.rx.load();
    this.tx.load();
    this.consumed = 0;
    this.active = true;
    this.quiet();
    return true;
  }

  /** Leaves the rings as they are. */
  letGo(): void {
    if (!this.active) return;
    this.active = false;
    this.rx.save();
    this.tx.save();
    Atomics.store(this.control, PAIR_USED, 0);
  }

  /** The back end broke a rule: the main thread is told, and the rings are not used until it has another connection. */
  fail(ring: UserRing): void {
    this.control[PAIR_FAULT_RING] = ring === this.rx ? 0 : 1;
    Atomics.store(this.control, PAIR_FAULT, ring.fault);
    this.letGo();
  }

  quiet(): void {
    this.calls = false;
    this.rx.disableCalls();
    this.tx.disableCalls();
  }

  kick(fd: number): void {
    this.#caller.call(fd);
    this.control[PAIR_TURNS]++;
  }

  close(): void {
    this.letGo();
    Atomics.store(this.control, PAIR_USED, PAIR_ABSENT);
  }
}
