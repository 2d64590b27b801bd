/** Whether KVM can run the test guest here: nested virtualization may offer /dev/kvm and then hang or crash the guest. */
import { accessSync, constants, existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { GUEST_CACHE, guestImage } from './guest-image.ts';
import { makeTempDir, PeerProcess, removeTempDir } from './process.ts';

/** With KVM the guest is up within 2 s; one that hangs must not cost more than this. */
const BOOT_DEADLINE_MS = 8000;
const ANSWER_FILE = join(GUEST_CACHE, 'kvm.json');

let answer: Promise<boolean> | undefined;

/** Whether KVM works, found out by booting the guest once and remembered until the machine restarts. */
export function kvmWorks(): Promise<boolean> {
  answer ??= find();
  return answer;
}

async function find(): Promise<boolean> {
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK);
  } catch {
    return false;
  }
  const image = await guestImage();
  const boot = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
  try {
    const known = JSON.parse(readFileSync(ANSWER_FILE, 'utf8')) as { boot: string; works: boolean };
    if (known.boot === boot) return known.works;
  } catch {
    // not known yet
  }
  const works = await tryBoot(image.kernel, image.initrd);
  writeFileSync(ANSWER_FILE, `${JSON.stringify({ boot, works })}\n`);
  return works;
}

async function tryBoot(kernel: string, initrd: string): Promise<boolean> {
  const dir = makeTempDir('kvm');
  const log = join(dir, 'log');
  const qemu = new PeerProcess({
    name: 'KVM probe',
    command: 'qemu-system-x86_64',
    args: [
      ...[
        '-accel',
        'kvm',
        '-M',
        'q35',
        '-m',
        '192',
        '-nodefaults',
        '-no-user-config',
        '-display',
        'none',
        '-no-reboot',
      ],
      ...['-kernel', kernel, '-initrd', initrd, '-append', 'console=ttyS0 quiet panic=-1'],
      ...['-chardev', `file,id=log,path=${log}`, '-serial', 'chardev:log'],
    ],
  });
  try {
    const booted = () => existsSync(log) && readFileSync(log, 'latin1').includes('GUEST READY');
    await qemu.waitUntil('boot', booted, BOOT_DEADLINE_MS);
    return true;
  } catch {
    return false;
  } finally {
    qemu.killNow();
    await qemu.ended;
    removeTempDir(dir);
  }
}
