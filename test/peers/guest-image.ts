/** The test guests' kernel and initial RAM disk: built once by test/guest/mkguest.sh into .cache/guest. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { runToEnd } from './process.ts';

/** Where the image and what it is made of are kept; inside the checkout, ignored by git. */
export const GUEST_CACHE = fileURLToPath(new URL('../../.cache/guest', import.meta.url));
const MKGUEST = fileURLToPath(new URL('../guest/mkguest.sh', import.meta.url));

/** A bootable guest: paths of the kernel and initial RAM disk, and the kernel's version. */
export interface GuestImage {
  kernel: string;
  initrd: string;
  version: string;
}

let image: Promise<GuestImage> | undefined;

/** The guest image, built when it is missing or older than its recipe (about 15 s and 60 MB of downloads). */
export function guestImage(): Promise<GuestImage> {
  image ??= build();
  return image;
}

async function build(): Promise<GuestImage> {
  await runToEnd({ name: 'mkguest.sh', command: MKGUEST, args: [GUEST_CACHE] }, 5 * 60_000);
  const path = (name: string) => join(GUEST_CACHE, 'image', name);
  return {
    kernel: path('vmlinuz'),
    initrd: path('initrd'),
    version: readFileSync(path('version'), 'utf8').trim(),
  };
}
