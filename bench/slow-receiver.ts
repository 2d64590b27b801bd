/**
 * A vhost-user back end that takes packets at a rate, a burst at a time, a process of its own. Prints one line of JSON when its
 * standard input ends: what it took, and what it did not, because it was not there in time or because there was nothing to take.
 * That is of the time between the first packet and the last.
 *
 *   node bench/slow-receiver.ts --socket PATH --rate PPS [--core 1]
 */
import { parseArgs } from 'node:util';
import { VhostHost } from '../src/control/vhost-host.ts';
import type { VhostPort } from '../src/port/vhost-port.ts';
import { pinThread } from '../src/sys/affinity.ts';
import { BURST_SIZE } from '../src/virtio-net/burst.ts';
import { TokenBucket } from './token-bucket.ts';

/** Packets that may be taken late. */
const BUCKET = 4 * BURST_SIZE;
/** Between two looks at sockets. */
const TURN_MS = 5;

const { values: args } = parseArgs({
  options: { socket: { type: 'string' }, rate: { type: 'string', default: '1000000' }, core: { type: 'string' } },
});
if (args.socket === undefined) throw new RangeError('give a --socket');
if (args.core !== undefined) pinThread([Number(args.core)]);

const bucket = new TokenBucket(Number(args.rate), BUCKET);
let port: VhostPort | undefined;
let taken = 0;
/** from the first packet to the last one so far: what was due, and of it what was missed, and what was not there to be taken */
const seen = { due: 0, missed: 0, notThere: 0 };
let last = 0;
const host = new VhostHost({ path: args.socket });
host.on('ready', (ready) => {
  port = ready;
  last = performance.now();
});
const gone = () => {
  port = undefined;
};
host.on('stopped', gone);
host.on('destroyed', gone);

/** Takes a burst whenever one is due. */
function receive(from: VhostPort): void {
  const until = performance.now() + TURN_MS;
  for (let now = performance.now(); now < until; now = performance.now()) {
    const due = bucket.advance(Math.round((now - last) * 1e6));
    last = now;
    if (due < BURST_SIZE) continue;
    const n = from.receive();
    if (n === 0) continue;
    from.complete();
    bucket.take(n);
    if (taken === 0) bucket.reset();
    taken += n;
    ({ due: seen.due, missed: seen.missed, refused: seen.notThere } = bucket);
  }
}

let ended = false;
process.stdin.resume().on('end', () => {
  ended = true;
});
const turn = () => {
  if (ended) return void finish();
  if (port !== undefined) receive(port);
  setImmediate(turn);
};
turn();

async function finish(): Promise<void> {
  process.stdout.write(`${JSON.stringify({ taken, ...seen })}\n`);
  await host.close();
}
