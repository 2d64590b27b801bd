/** A stream of numbered frames between two guests of our own that outlives the back end between them, with a watch on the rings. */
import assert from 'node:assert/strict';
import { SwitchError } from '../../src/errors.ts';
import type { VirtioUser } from '../../src/port/virtio-user.ts';
import { VRING_AVAIL, VRING_USED_ELEM } from '../../src/uapi/virtio-ring.ts';
import { asSplit, type SplitDriver } from '../../src/virtqueue/split-driver.ts';
import { waitUntil } from '../peers/process.ts';
import { frame } from './traffic.ts';

const RX = 0;
const TX = 1;
const SHORTEST = 60;
const LONGEST = 1514;
const BROADCAST = 'ff:ff:ff:ff:ff:ff';
/** Time for what takes microseconds, on a busy machine. */
const PATIENCE_MS = 10_000;

/** The heads in the available ring from index `from` up to `to`. */
function offered({ views, place, size }: SplitDriver, from: number, to: number): number[] {
  const heads: number[] = [];
  for (let i = from; i !== to; i = (i + 1) & 0xffff)
    heads.push(views.dv.getUint16(place.availOff + VRING_AVAIL.size + 2 * (i & (size - 1)), true));
  return heads;
}

/** The heads in the used ring, which begins like the other, from index `from` up to `to`. */
function used({ views, place, size }: SplitDriver, from: number, to: number): number[] {
  const heads: number[] = [];
  for (let i = from; i !== to; i = (i + 1) & 0xffff)
    heads.push(views.dv.getUint32(place.usedOff + VRING_AVAIL.size + VRING_USED_ELEM.size * (i & (size - 1)), true));
  return heads;
}

const ascending = (a: number, b: number) => a - b;

/** One way, from one card to the other: every frame arrives, in order; after a restart some arrive once more. */
export class Stream {
  readonly from: VirtioUser;
  readonly to: VirtioUser;
  /** Frames on the way at most: the receiving ring has room for them. */
  readonly window: number;
  /** Frames that came a second time. */
  repeated = 0;
  /** frames whose numbers end in the same byte differ in number and length only */
  readonly #frames: Uint8Array[] = [];
  #next = 0;
  #seen = 0;
  /** the number from which on frames may come again, until a new one does */
  #repeatFrom: number | undefined;
  #usedAtDeath = 0;
  /** heads that the dead back end had not used */
  #held: number[] = [];
  #stopping = false;

  constructor(from: VirtioUser, to: VirtioUser, window: number) {
    this.from = from;
    this.to = to;
    this.window = window;
  }

  /** Frames that have arrived. */
  get seen(): number {
    return this.#seen;
  }

  /** The frame with that number, which is there until the next is asked for. */
  #frame(n: number): Uint8Array {
    const low = n & 0xff;
    this.#frames[low] ??= frame(this.to.mac, this.from.mac, low, LONGEST);
    const whole = this.#frames[low];
    whole[14] = n >> 16;
    whole[15] = n >> 8;
    return whole.subarray(0, SHORTEST + ((n * 37) % (LONGEST - SHORTEST + 1)));
  }

  /** Sends as many as may be on the way, without waiting. */
  fill(): void {
    while (this.#next - this.#seen < this.window && this.from.send(this.#frame(this.#next))) this.#next++;
    this.from.flush();
  }

  /** Sends and receives until {@link stop}; ends early when the back end goes. Fails when a frame is lost. */
  async run(): Promise<void> {
    this.#stopping = false;
    try {
      while (!this.#stopping) {
        this.fill();
        const first = await this.to.waitFrame(PATIENCE_MS);
        assert.ok(first, `frame ${this.#seen} from ${this.from.mac} has not come`);
        this.#take(first);
        this.drain();
      }
    } catch (error) {
      if (!(error instanceof SwitchError && error.code === 'DISCONNECTED')) throw error;
    }
  }

  stop(): void {
    this.#stopping = true;
  }

  /** Takes what is in the receiving ring. */
  drain(): void {
    for (let next = this.to.receive(); next !== undefined; next = this.to.receive()) this.#take(next);
  }

  #take(got: Uint8Array): void {
    if (!Buffer.from(got.subarray(0, 6)).equals(this.to.macBytes)) return; // somebody's announcement
    const n = (got[14] << 16) | (got[15] << 8) | got[16];
    const what = `frame ${n} from ${this.from.mac}, where ${this.#seen} is due`;
    assert.ok(Buffer.from(got).equals(this.#frame(n)), `${what}, is not as it was sent`);
    if (n < this.#seen) {
      assert.ok(this.#repeatFrom !== undefined && n >= this.#repeatFrom, `${what}, came once more`);
      this.#repeatFrom = n + 1;
      this.repeated++;
      return;
    }
    assert.equal(n, this.#seen, `${what}: one before it is lost, or it was never sent`);
    this.#repeatFrom = undefined;
    this.#seen = n + 1;
  }

  /** Frames on the way may be lost with a guest's memory. */
  #forgive(): void {
    this.#seen = this.#next;
    this.#repeatFrom = this.#next - this.window;
  }

  /**
   * The back end is gone, and both cards have noticed. One that was killed lost nothing; one that was `stopped` let go of one guest
   * after the other, and dropped what the last ones sent to the first. @returns descriptors that it had not used
   */
  noteDeath(stopped = false): number {
    this.drain();
    if (stopped) this.#forgive();
    else this.#repeatFrom = this.#seen - this.window;
    const { driver } = this.from.ring(TX);
    if (driver.format === 'packed') {
      this.from.pairs[0].tx.reapAll();
      return driver.size - driver.nFree;
    }
    const split = asSplit(driver);
    this.#usedAtDeath = split.sharedUsedIdx;
    this.#held = offered(split, split.sharedUsedIdx, split.availIdx);
    return this.#held.length;
  }

  /** A guest, sender or receiver, loses its memory while there is no back end; call after {@link noteDeath}. */
  rebootDead(which: 'from' | 'to'): void {
    this[which].reset();
    this.noteDeath(true);
  }

  /** A guest, sender or receiver, reboots with frames on the way. */
  async reboot(which: 'from' | 'to'): Promise<void> {
    this.fill();
    this.#forgive();
    await this[which].restart({ reset: true });
    await this.announce();
  }

  /** Some frames go the other way, from the receiver to the sender: each arrives, in order. */
  async assertBack(frames: number): Promise<void> {
    while (this.from.receive() !== undefined); // announcements
    const sent = Array.from({ length: frames }, (_, n) => frame(this.from.mac, this.to.mac, n, 60 + n));
    for (const each of sent) assert.ok(this.to.send(each));
    this.to.flush();
    for (const [n, expected] of sent.entries()) {
      const got = await this.from.waitFrame(PATIENCE_MS);
      assert.ok(got && Buffer.from(got).equals(expected), `frame ${n} of ${frames} from ${this.to.mac}`);
    }
    // A frame can be here before its buffer is back; one that is not would be sent again after a restart, and flooded.
    await this.#allBack(this.to);
  }

  /** Waits until a card has every transmit buffer back; it fails when one comes back twice. */
  async #allBack({ pairs: [{ tx }] }: VirtioUser): Promise<void> {
    const taken = () => {
      tx.reapAll();
      return tx.ring.nFree === tx.ring.size;
    };
    const details = () => `${tx.ring.size - tx.ring.nFree} descriptors of ${tx.ring.size} are on the way`;
    await waitUntil('the buffers of the frames to come back', taken, PATIENCE_MS, { everyMs: 1, details });
  }

  /** The receiver connects again, before the sender does, and says where it is, so that frames for it are not flooded. */
  async reconnectReceiver(deadlineMs: number): Promise<void> {
    await this.to.reconnect(deadlineMs);
    await this.announce();
  }

  async announce(): Promise<void> {
    assert.ok(this.to.send(frame(BROADCAST, this.to.mac)));
    assert.ok((await this.to.waitSent(PATIENCE_MS)) > 0, 'the announcement has not been taken');
  }

  /** The sender connects again: every descriptor that the dead back end held is used by the new one, exactly once. */
  async reconnectSender(deadlineMs: number): Promise<void> {
    await this.from.reconnect(deadlineMs);
    const { driver: ring } = this.from.ring(TX);
    if (ring.format === 'packed') return this.#allBack(this.from);
    const driver = asSplit(ring);
    const from = this.#usedAtDeath;
    const to = driver.availIdx;
    await waitUntil('every descriptor to be used', () => driver.sharedUsedIdx === to, PATIENCE_MS, {
      details: () => `used ${driver.sharedUsedIdx} of ${from} to ${to}`,
      everyMs: 1,
    });
    assert.deepEqual(used(driver, from, to).sort(ascending), this.#held.sort(ascending));
    this.from.pairs[0].tx.reapAll();
    assert.equal(driver.nFree, driver.size);
  }

  /** Waits until nothing is on the way: then every receive buffer, of one descriptor each, is on offer exactly once. */
  async assertWhole(): Promise<void> {
    const { driver } = this.to.ring(RX);
    const free = () => {
      this.drain();
      return driver.nFree === 0 && !driver.ready && this.#seen === this.#next;
    };
    const details = () => `${this.#seen} of ${this.#next} frames from ${this.from.mac} have come`;
    await waitUntil('all receive buffers to be on offer', free, PATIENCE_MS, { everyMs: 1, details });
    if (driver.format === 'split') {
      const split = asSplit(driver);
      const heads = offered(split, split.sharedUsedIdx, split.availIdx).sort(ascending);
      const all = Array.from({ length: split.size }, (_, i) => i);
      assert.deepEqual(heads, all);
    }
    assert.ok(this.to.pairs[0].rx.guardsIntact, 'the back end wrote outside the receive buffers');
  }
}
