/** Makes memory the UMEM of an AF_XDP socket, and says `registered`, or what is wrong. Run by zero-copy-memory.test.ts. */
import { closeSync, ftruncateSync, openSync } from 'node:fs';
import { GuestUmem, UMEM_PAD } from '../../src/port/guest-umem.ts';
import { createMemfd } from '../../src/sys/memory.ts';
import { openXdpSocket } from '../../src/sys/xdp-socket.ts';

const BYTES = 2 ** 23;
const [file] = process.argv.slice(2);

const fd = file === undefined ? createMemfd('guest', BYTES) : openSync(file, 'w+');
if (file !== undefined) ftruncateSync(fd, BYTES);
const own = createMemfd('own', UMEM_PAD + 4096);
const umem = new GuestUmem([{ fd, page: 4096, from: 0, len: BYTES, mappings: [] }], own, 4096);
const socket = openXdpSocket();
try {
  const done = await umem.register(socket, () => true);
  console.log(done ? 'registered' : 'not wanted');
} catch (error) {
  const { code, message } = error as Error & { code?: string };
  console.log(`${code}: ${message}`);
} finally {
  umem.close();
  for (const one of [fd, own, socket]) closeSync(one);
}
