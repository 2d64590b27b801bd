/**
 * Load at a rate, on one thread that is all guests: one clock, so that a frame's way can be timed from one guest to another, or there
 * and back. Says by itself whether it kept the rate, and how finely it can tell time.
 */
import { LatencyHistogram } from '../src/testpmd/traffic/latency-histogram.ts';
import { clock, PacedPort } from './paced-port.ts';
import type { StaticPort } from './static-port.ts';
import { TokenBucket } from './token-bucket.ts';
import type { Times } from './trials.ts';

/** Frames with a time, about, unless there are fewer frames. */
const STAMPS = 200_000;
/** No frame for so long: those that are missing are lost. And where the switch has not even taken them all: it may lose its core. */
const QUIET_MS = 100;
const STUCK_MS = 2000;
const CLOCK_READS = 1000;
const PERCENTILES = { p50: 50, p99: 99, p999: 99.9 };

export interface Pace {
  /** frames a second that each sending port offers */
  readonly rate: number;
  /** frames that may be sent late, all at once */
  readonly bucket: number;
  /** percent of the frames; if more are missed, the rate was not kept */
  readonly missed: number;
  readonly warmup: number;
  readonly seconds: number;
  /** Port 0 sends, port 1 sends back what it receives, and the time is that of there and back. Else each port sends, or port 0. */
  readonly echo: boolean;
  readonly oneWay: boolean;
  /** cache lines of each frame to write and to read */
  readonly lines: number;
  /** what stands in for a switch, if anything does */
  readonly device: { poll(): void } | undefined;
}

function timesOf(histogram: LatencyHistogram): Times {
  const { count, min, max } = histogram;
  const at = (percent: number) => histogram.percentile(percent);
  return { count, min, p50: at(PERCENTILES.p50), p99: at(PERCENTILES.p99), p999: at(PERCENTILES.p999), max };
}

/** The least step of the clock that was seen, ns. */
function clockStep(): number {
  let least = Number.POSITIVE_INFINITY;
  for (let n = 0, last = performance.now(); n < CLOCK_READS; n++) {
    const now = performance.now();
    if (now > last) least = Math.min(least, now - last);
    last = now;
  }
  return Math.round(least * 1e6);
}

/** Two guests or more that send at a rate. */
export class PacedGuests {
  readonly ports: readonly PacedPort[];
  readonly #pace: Pace;
  /** what is due, of each port that sends by itself */
  readonly #buckets: readonly TokenBucket[];
  /** ns from one look at everything to the next: a frame's time can be so much too long */
  readonly #turns = new LatencyHistogram();
  #last = 0;

  constructor(ports: readonly StaticPort[], pace: Pace) {
    const { rate, seconds, lines, echo, oneWay, bucket } = pace;
    if (echo && ports.length !== 2) throw new RangeError('there and back is between two ports');
    // odd, so that not always the same frame of a burst is the one
    const sample = Math.max(1, Math.floor((rate * seconds) / STAMPS)) | 1;
    this.ports = ports.map(({ rx, tx }) => new PacedPort(rx, tx, lines, sample));
    const senders = echo || oneWay ? 1 : ports.length;
    this.#buckets = Array.from({ length: senders }, () => new TokenBucket(rate, bucket));
    this.#pace = pace;
  }

  /** One look at everything. `now`: what the clock says. @returns true if a frame arrived */
  #turn(now: number, sending: boolean): boolean {
    const { ports } = this;
    const buckets = this.#buckets;
    const { echo, device } = this.#pace;
    const elapsed = (now - this.#last) >>> 0;
    this.#last = now;
    this.#turns.record(elapsed);
    if (sending) {
      for (let i = 0; i < buckets.length; i++) {
        const due = buckets[i].advance(elapsed);
        if (due === 0) continue;
        const n = Math.min(due, ports[i].room(due));
        if (n === 0) continue;
        buckets[i].take(n);
        ports[i].send(n, now);
      }
    }
    if (device !== undefined) device.poll();
    let arrived = false;
    for (let i = 0; i < ports.length; i++) {
      const port = ports[i];
      let n = port.rx.look(1);
      if (n === 0) continue;
      const back = echo && i === 1;
      if (back) n = Math.min(n, port.room(n));
      if (n === 0) continue;
      arrived = true;
      port.read(n, clock());
      if (back) port.reflect(n);
      port.rx.recycle(n);
    }
    return arrived;
  }

  /** The hot loop. @returns seconds it ran */
  #run(seconds: number): number {
    const from = performance.now();
    const until = from + seconds * 1000;
    this.#last = clock();
    do this.#turn(clock(), true);
    while (performance.now() < until);
    return (performance.now() - from) / 1000;
  }

  /** Frames that each direction has taken and not delivered. */
  #onTheWay(): number {
    const { ports } = this;
    const senders = this.#pace.echo ? ports.length : this.#buckets.length;
    let n = 0;
    for (let i = 0; i < senders; i++) n += ports[i].sent - ports[(i + 1) % ports.length].received;
    return n;
  }

  /** Waits for what is on the way. */
  #drain(): void {
    let now = performance.now();
    for (let last = now; this.#onTheWay() > 0; now = performance.now()) {
      if (this.#turn(clock(), false)) last = now;
      const taken = this.ports.every((port) => port.room(port.tx.mask + 1) > port.tx.mask);
      if (now - last > (taken ? QUIET_MS : STUCK_MS)) break;
    }
    for (const { tx } of this.ports) tx.retire(tx.look(1));
  }

  /** Sends for the time of warming up, and then measures. `whileMeasuring` is called between. */
  measure(whileMeasuring: () => void) {
    const { ports } = this;
    const { rate, warmup, seconds: wanted, echo } = this.#pace;
    const senders = this.#buckets.length;
    this.#run(warmup);
    // port i + 1 gets what port i sends; what is sent back has the numbers it came with
    for (const [i, port] of ports.entries()) {
      const from = (i + ports.length - 1) % ports.length;
      port.mark(ports[echo ? 0 : from].seq);
    }
    for (const bucket of this.#buckets) bucket.reset();
    this.#turns.clear();
    whileMeasuring();
    const seconds = this.#run(wanted);
    const turn = timesOf(this.#turns);
    this.#drain();
    const lost = this.#onTheWay();
    const directions = (echo ? ports : ports.slice(0, senders)).map(({ sent }, i) => {
      const to = (i + 1) % ports.length;
      const { received } = ports[to];
      return { from: i, to, sent, received, mpps: received / seconds / 1e6 };
    });
    const sum = (of: (bucket: TokenBucket) => number) => this.#buckets.reduce((all, bucket) => all + of(bucket), 0);
    const due = sum((bucket) => bucket.due);
    const missed = sum((bucket) => bucket.missed);
    const refused = sum((bucket) => bucket.refused);
    const times = new LatencyHistogram();
    for (const port of echo ? [ports[0]] : ports) times.add(port.latency);
    return {
      rate,
      echo,
      seconds,
      mpps: directions.reduce((all, d) => all + d.mpps, 0),
      directions,
      /** of the frames that were due: offered too late or not at all by the generator, and not taken in time by the switch */
      due: Math.round(due),
      missed: Math.round(missed),
      stalls: sum((bucket) => bucket.stalls),
      refused: Math.round(refused),
      /** taken by the switch and not delivered */
      lost,
      lossPercent: due === 0 ? 0 : (100 * (lost + refused)) / due,
      kept: missed <= (due * this.#pace.missed) / 100,
      /** frames a second that each sender did offer */
      offered: (due - missed) / seconds / senders,
      latency: timesOf(times),
      impossible: times.impossible,
      /** how finely the generator tells time */
      resolution: { turn, clockStep: clockStep() },
      disorder: ports.reduce((all, port) => all + port.disorder, 0),
    };
  }
}
