/**
 * An opener with a process of its own, to be killed or left alone: sends frames without an end, and asks for the features now and
 * then. Says `sending`, and at last `errno N`. Run by cuse-inside.ts: PATH MAC PEER
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { CuseCard } from '../kit/cuse-card.ts';
import { IoctlError } from '../kit/cuse-client.ts';
import { frame } from './traffic.ts';

const [path, mac, peer] = process.argv.slice(2);
const card = new CuseCard({ path, mac });
const sent = Array.from({ length: 64 }, (_, n) => frame(peer, mac, n, 60 + n * 20));
console.log('sending');
try {
  for (;;) {
    for (const one of sent) card.send(one);
    card.flush();
    card.client.features();
    await sleep(1);
  }
} catch (error) {
  if (!(error instanceof IoctlError)) throw error;
  console.log(`errno ${error.errno}`);
  process.exit();
}
