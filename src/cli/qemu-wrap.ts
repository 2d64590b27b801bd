#!/usr/bin/env node
/**
 * The qemu-wrap command: rewrites a QEMU command line so that the guest is on the switch, and becomes QEMU.
 */
import { deviceLink, type Link, reconnectKeys, socketLink } from '../launch/link.ts';
import { printRewritten } from '../launch/print.ts';
import { rewriteQemuLine } from '../launch/rewrite.ts';
import { replaceProcess } from '../sys/exec.ts';
import { rewriteDomainFile } from './libvirt-domain.ts';
import { fileKind, findProgram, openDevice, qemuVersion, readHugetlbMounts, usualPrograms } from './qemu-machine.ts';
import { parseQemuWrap, type QemuWrapSettings, qemuWrapHelp } from './qemu-wrap-options.ts';
import { runCommand } from './run-command.ts';

function linkFor(settings: QemuWrapSettings, program: string): Link {
  if (settings.devices.length > 0) {
    return deviceLink(settings.devices, settings.print ? () => 'FD' : openDevice);
  }
  let keys: Readonly<Record<string, number>> | undefined;
  const { reconnect } = settings;
  return socketLink(settings.sockets, () => {
    keys ??= reconnect === 0 ? {} : reconnectKeys(reconnect, qemuVersion(program));
    return keys;
  });
}

async function run(settings: QemuWrapSettings): Promise<void> {
  if (settings.libvirt !== undefined) {
    await rewriteDomainFile(settings.libvirt, settings);
    return;
  }
  const { qemu, args, hugepages, offloads, queues } = settings;
  const program = findProgram(qemu === undefined ? usualPrograms() : [qemu], process.env.PATH ?? '');
  const rewritten = rewriteQemuLine(args, {
    network: { link: linkFor(settings, program), offloads, queues },
    memory: { hugepages, mounts: readHugetlbMounts, fileKind },
  });
  if (settings.print) {
    process.stdout.write(printRewritten(program, rewritten));
    return;
  }
  for (const remark of rewritten.remarks) process.stderr.write(`qemu-wrap: ${remark}\n`);
  replaceProcess(program, rewritten.args);
}

await runCommand({ name: 'qemu-wrap', help: qemuWrapHelp, parse: parseQemuWrap, run }, process.argv.slice(2));
