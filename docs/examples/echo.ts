/**
 * A back end that gives every guest its own frames back:
 *
 *   node docs/examples/echo.ts ./echo.sock
 *   qemu-system-x86_64 … -chardev socket,id=c0,path=./echo.sock -netdev vhost-user,id=n0,chardev=c0 -device virtio-net-pci,netdev=n0
 */
import { BURST_SIZE, VhostHost, type VhostPort } from 'vhost-switch';

const path = process.argv[2] ?? './echo.sock';
const host = new VhostHost({ path, log: (_level, text) => console.error(text) });
const ready = new Set<VhostPort>();
host.on('ready', (port) => ready.add(port));
host.on('stopped', (port) => ready.delete(port));
host.on('fault', (port, vring, reason) => console.error(`device ${port.id}: vring ${vring} stopped: ${reason}`));

const everyPacket = Int32Array.from({ length: BURST_SIZE }, (_, i) => i);

function round(): void {
  for (const port of ready) {
    const n = port.receive();
    if (n === 0) continue;
    port.transmit(everyPacket, 0, n);
    port.complete();
  }
  timer = setImmediate(round);
}

let timer = setImmediate(round);
console.log(`listening on ${path}`);
process.once('SIGINT', async () => {
  clearImmediate(timer);
  await host.close();
});
