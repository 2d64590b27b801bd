/** Frames with a payload that says which one it is, and guests of our own that exchange them through a back end. */
import assert from 'node:assert/strict';
import { after } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { VirtioUser, type VirtioUserOptions } from '../../src/port/virtio-user.ts';

/** Guests that a failed test may leave behind: they would keep its process alive. */
const connected = new Set<VirtioUser>();
after(async () => {
  for (const guest of connected) await guest.close();
});

/** A guest of our own, which is closed at the end of the file at the latest. */
export async function connectGuest(options: VirtioUserOptions): Promise<VirtioUser> {
  const guest = await VirtioUser.connect(options);
  connected.add(guest);
  return guest;
}

export const macOf = (n: number): string => `52:54:00:00:00:${n.toString(16).padStart(2, '0')}`;
const bytesOf = (mac: string) => mac.split(':').map((byte) => Number.parseInt(byte, 16));

/** IEEE 802 "local experimental" EtherType. */
const ETHERTYPE = [0x88, 0xb5];
const HEADER_BYTES = 14;
/** Frames on the way at a time, which the smallest receive ring here has room for. */
const ON_THE_WAY = 32;

/** Frame number `n` from one address to another; no two alike. */
export function frame(dst: string, src: string, n = 0, bytes = 64): Uint8Array {
  const all = Uint8Array.from({ length: bytes }, (_, i) => (i * 7 + n * 13) & 0xff);
  all.set([...bytesOf(dst), ...bytesOf(src), ...ETHERTYPE, n >> 16, n >> 8, n]);
  return all;
}

/** What a card must have to exchange frames. */
export type Exchanger = Pick<VirtioUser, 'send' | 'flush' | 'receive' | 'waitFrame' | 'pairs'>;

/** Sends the frames, a few at a time; every one must arrive, in order and unharmed, and nothing else. */
export async function assertDelivered(
  from: Exchanger,
  to: Exchanger,
  frames: readonly Uint8Array[],
  ms = 10_000,
): Promise<void> {
  let sent = 0;
  for (const [i, expected] of frames.entries()) {
    while (sent < frames.length && sent - i < ON_THE_WAY && from.send(frames[sent])) sent++;
    from.flush();
    const received = await to.waitFrame(ms);
    assert.ok(received, `frame ${i} of ${frames.length} is missing`);
    assert.ok(
      Buffer.from(received).equals(expected),
      `frame ${i} is not as it was sent: ${firstDifference(received, expected)}`,
    );
  }
  assert.equal(to.receive(), undefined, 'nothing else arrives');
  assert.ok(to.pairs[0].rx.guardsIntact, 'the back end wrote outside the receive buffers');
}

function firstDifference(got: Uint8Array, expected: Uint8Array): string {
  const at = expected.findIndex((byte, i) => got[i] !== byte);
  return `${got.length} bytes instead of ${expected.length}, the first difference at byte ${at}`;
}

/** What {@link Conversation} has seen. */
export interface Talk {
  readonly exchanged: number;
  readonly longestMs: number;
}

/**
 * Two guests of our own that send each other a frame in turn, without an end, and notice when one does not come: what the other
 * guests of a switch must not disturb.
 */
export class Conversation {
  readonly cards: readonly [VirtioUser, VirtioUser];
  #stopping = false;
  #exchanged = 0;
  #longestMs = 0;
  readonly #done: Promise<void>;

  private constructor(cards: [VirtioUser, VirtioUser], pauseMs: number) {
    this.cards = cards;
    this.#done = this.#run(pauseMs);
    this.#done.catch(() => {}); // told by `exchangesMore` and `stop`
  }

  /** Connects guests with the addresses `macs`, and lets them begin. `pauseMs` lies between two exchanges. */
  static async start(
    path: string,
    macs: readonly [string, string] = [macOf(0xa1), macOf(0xa2)],
    { pauseMs = 1, ...options }: { pauseMs?: number } & Partial<VirtioUserOptions> = {},
  ): Promise<Conversation> {
    const a = await connectGuest({ path, mac: macs[0], ...options });
    const b = await connectGuest({ path, mac: macs[1], ...options });
    const talk = new Conversation([a, b], pauseMs);
    await talk.exchangesMore(2);
    return talk;
  }

  async #run(pauseMs: number): Promise<void> {
    const [a, b] = this.cards;
    for (let n = 0; !this.#stopping; n++) {
      const from = performance.now();
      await this.#say(a, b, n);
      await this.#say(b, a, n);
      this.#longestMs = Math.max(this.#longestMs, performance.now() - from);
      this.#exchanged++;
      if (pauseMs > 0) await sleep(pauseMs);
    }
  }

  async #say(from: VirtioUser, to: VirtioUser, n: number): Promise<void> {
    const said = frame(to.mac, from.mac, n, 64 + ((n * 37) % 1400));
    assert.ok(from.send(said), 'the ring of a guest that sends one frame at a time is full');
    from.flush();
    const giveUpAt = performance.now() + 5000;
    for (;;) {
      const heard = await to.waitFrame(giveUpAt - performance.now());
      assert.ok(heard, `frame ${n} from ${from.mac} has not come within 5 s`);
      if (Buffer.from(heard).equals(said)) return;
      const ours = heard[5] === to.macBytes[5] && heard[HEADER_BYTES - 1] === ETHERTYPE[1];
      assert.ok(!ours || heard[0] & 1, `frame ${n} from ${from.mac} is not as it was sent`);
    }
  }

  /** Waits until they have exchanged `n` frames more; fails when one is lost. */
  async exchangesMore(n = 20, ms = 10_000): Promise<void> {
    const target = this.#exchanged + n;
    const giveUpAt = performance.now() + ms;
    while (this.#exchanged < target) {
      assert.ok(performance.now() < giveUpAt, `the others exchanged ${this.#exchanged} frames, ${target} were awaited`);
      await Promise.race([sleep(5), this.#done]);
    }
  }

  get talk(): Talk {
    return { exchanged: this.#exchanged, longestMs: this.#longestMs };
  }

  /** Ends it, disconnects both, and fails if a frame was lost meanwhile. */
  async stop(): Promise<Talk> {
    this.#stopping = true;
    try {
      await this.#done;
    } finally {
      for (const card of this.cards) await card.close();
    }
    return this.talk;
  }
}

/** The address of the guest that {@link whileFed} has. */
export const FEEDER = macOf(0x77);

/** Has a guest of its own send frames of 1400 bytes to an address for as long as `use` takes. */
export async function whileFed<T>(path: string, mac: string, use: () => Promise<T>): Promise<T> {
  const feeder = await connectGuest({ path, mac: FEEDER });
  let done = false;
  const feed = async () => {
    for (let n = 0; !done; n++) {
      feeder.send(frame(mac, FEEDER, n, 1400));
      await feeder.waitSent(10);
      await sleep(0);
    }
  };
  const feeding = feed();
  try {
    return await use();
  } finally {
    done = true;
    await feeding;
    await feeder.close();
  }
}
