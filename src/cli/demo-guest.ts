/**
 * An embedded guest of the demonstration: a thread with a virtio-user network card that sends its neighbour frames and answers
 * each one that comes, as fast as both can.
 */
import { setImmediate as turn } from 'node:timers/promises';
import { type MessagePort, parentPort, workerData } from 'node:worker_threads';
import { VirtioUser } from '../port/virtio-user.ts';

export interface DemoGuestSetup {
  /** socket of the switch */
  readonly path: string;
  readonly mac: string;
  /** where its frames go */
  readonly peer: string;
  /** bytes of its frames */
  readonly size: number;
}

/** Frames on the way at first; from then on each one received is answered, so that no ring runs over. */
const BURST = 128;
const WAIT_MS = 20;
const CONNECT_MS = 5000;
/** IEEE 802 "local experimental" EtherType */
const ETHERTYPE = [0x88, 0xb5];

const bytesOf = (mac: string) => mac.split(':').map((byte) => Number.parseInt(byte, 16));

const { path, mac, peer, size } = workerData as DemoGuestSetup;
let stopping = false;
(parentPort as MessagePort).once('message', () => {
  stopping = true;
});

const frame = new Uint8Array(size);
frame.set([...bytesOf(peer), ...bytesOf(mac), ...ETHERTYPE]);
const card = await VirtioUser.connect({ path, mac, deadlineMs: CONNECT_MS });
let credit = BURST;
while (!stopping && card.connected) {
  for (; credit > 0 && card.send(frame); credit--);
  card.flush();
  let received = 0;
  while (received < BURST && card.receive() !== undefined) received++;
  credit += received;
  if (received > 0) await turn();
  else if ((await card.waitFrame(WAIT_MS)) === undefined) credit = BURST;
  else credit++;
}
await card.close();
