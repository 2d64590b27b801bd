#!/usr/bin/env node
/**
 * An entropy source for virtual machines: virtio-rng over vhost-user.
 *
 *   node --conditions=source examples/vhost-user-rng.ts --socket-path ./rng.sock
 *   qemu-system-x86_64 -M q35,memory-backend=mem -object memory-backend-memfd,id=mem,size=1G,share=on …
 *     -chardev socket,id=rng,path=./rng.sock -device vhost-user-rng-pci,chardev=rng
 *
 * `--conditions=source` is for a checkout; where the package is installed it is not needed.
 * @see VIRTIO 1.2 §5.4
 */
import { randomFill } from 'node:crypto';
import { promisify } from 'node:util';
import { type DeviceType, runBackEnd, type VirtioRequest } from 'vhost-switch';

/** Random bytes a request gets at most: fewer than it has room for will do (§5.4.6). */
const MAX_BYTES = 64 * 1024;

const fill = promisify(randomFill<Uint8Array>);

/** Has one queue, and nothing but requests for bytes. */
class EntropySource implements DeviceType {
  async onRequest({ writable }: VirtioRequest): Promise<number> {
    const room = writable.slice(0, Math.min(writable.length, MAX_BYTES));
    for (const piece of room.pieces) await fill(piece);
    return room.length;
  }
}

await runBackEnd({
  name: 'vhost-user-rng',
  summary: "Gives virtual machines random numbers of the kernel's: virtio-rng over vhost-user.",
  type: 'rng',
  options: {},
  start: () => ({ maxDevices: 64, createDevice: () => new EntropySource() }),
});
