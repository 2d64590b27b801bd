/**
 * Makes a QEMU command line of another machine run on this one, and changes nothing else about it: KVM becomes TCG, files that are not
 * here become empty ones in a folder, taps that are left become user networks, ports and displays go.
 */
import { mkdirSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { parseLine } from '../../src/launch/qemu-line.ts';

export interface RunPlace {
  /** A folder of its own, in which QEMU is run. */
  readonly dir: string;
  readonly kernel: string;
  /** The socket that takes the place of all the switch's. */
  readonly socket: string;
}

/** Options that say where the machine is shown or that it lives on, or that this QEMU does not have; `id` is Proxmox's own. */
const LEFT_OUT = new Set([
  'enable-kvm',
  'daemonize',
  'id',
  'readconfig',
  'vnc',
  'mem-prealloc',
  'realtime',
  'iscsi',
  'sandbox',
]);
/** Options whose files QEMU makes itself. */
const MAKES_FILES = new Set(['chardev', 'qmp', 'monitor', 'serial', 'pidfile']);
/** The descriptor that takes the place of one that QEMU is to be given, open for writing. */
export const PASSED_FD = 9;
const DISK_BYTES = 128 * 2 ** 20;
const FIRMWARE_BYTES = 2 ** 20;

const ABSOLUTE = /(?<![\w.])(?:\/[\w.@%+-]+)+(?:\/+[\w.@%+-]+)*/g;
const RELATIVE =
  /(?<![\w./-])[\w.-]+(?:\/[\w.-]+)*\.(?:img|qcow2|iso|raw|ext2|fd|socket|pid)\b|\b(?:bzImage|vmlinuz|vmlinux)\b/g;
/** Files of every machine. */
const HERE = /^\/dev\/(urandom|null|fdset\/\d+)$/;

/** QEMU's arguments for this machine. The files they name are made. */
export function runnable(args: readonly string[], place: RunPlace): string[] {
  return parseLine(args).flatMap(({ name, words: [option, value] }) => {
    if (LEFT_OUT.has(name)) return [];
    if (name === '') return [withFiles('hda', option, place)];
    return value === undefined ? [option] : [option, withFiles(name, ofThisMachine(name, value), place)];
  });
}

function ofThisMachine(name: string, value: string): string {
  switch (name) {
    case 'machine':
      return value
        .replace(/accel=[^,]*/, 'accel=tcg')
        .replace(/,kernel_irqchip=\w+/, '')
        .replace('+pve0', '');
    case 'accel':
      return 'tcg';
    case 'cpu':
      return /^host|\bhv_/.test(value) ? 'max' : value.replace(/,(enforce|\+kvm_\w+)/g, '');
    case 'netdev':
    case 'nic':
      return userNetwork(value);
    case 'object':
      return value
        .replace(/mem-path=[^,]*hugepages[^,]*/, 'mem-path=/dev/shm')
        .replace(/"mem-path":"[^"]*hugepages[^"]*"/, '"mem-path":"/dev/shm"')
        .replace(/,prealloc=(on|yes)/, '')
        .replace('"prealloc":true', '"prealloc":false');
    case 'chardev':
      return value.replace(/\bport=\d+/, 'port=0').replace(/\bfd=\d+/, 'path=/var/run/passed.sock');
    case 'add-fd':
      return value.replace(/\bfd=\d+/, `fd=${PASSED_FD}`);
    case 'blockdev':
      return value.replaceAll('"direct":true', '"direct":false');
    case 'drive':
      return value.replace(/,(cache|aio)=\w+/g, '').replace('format=qcow2', 'format=raw');
    default:
      return value;
  }
}

/** The networks that stay with cards that are not virtio. */
function userNetwork(value: string): string {
  if (/"type":"tap"/.test(value)) return JSON.stringify({ type: 'user', id: JSON.parse(value).id });
  const id = /\bid=[^,]*/.exec(value)?.[0];
  if (/^(type=)?tap/.test(value)) return id === undefined ? 'user' : `user,${id}`;
  return value.replace(/,hostfwd=[^,]*/g, '');
}

function withFiles(name: string, value: string, place: RunPlace): string {
  const make = (path: string) => {
    mkdirSync(dirname(path), { recursive: true });
    if (MAKES_FILES.has(name)) return;
    if (/(bzImage|vmlinuz|vmlinux)$/.test(path)) {
      symlinkSync(place.kernel, path);
    } else {
      writeFileSync(path, '');
      truncateSync(path, path.endsWith('.fd') ? FIRMWARE_BYTES : DISK_BYTES);
    }
  };
  if (['append', 'smbios', 'name'].includes(name)) return value;
  const switchSocket = name === 'chardev' && /\bid=(vhost-|charnet|chr0|char1)/.test(value);
  if (switchSocket) return value.replace(/path=(?:[^,]|,,)*/, `path=${place.socket}`);
  const absolute = value.replace(ABSOLUTE, (path) => {
    if (HERE.test(path) || path === '/dev/shm') return path;
    const file = join(place.dir, basename(path));
    make(file);
    return file;
  });
  if (absolute !== value) return absolute;
  for (const [path] of value.matchAll(RELATIVE)) make(join(place.dir, path));
  return value;
}
