/**
 * Which Debian packages each real peer needs, and how they come onto the machine.
 * Never asks a question: without root, apt or a network, a peer is left out and the reason is told.
 */
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { guestImage } from './guest-image.ts';
import { probeLibvirt } from './libvirt.ts';
import { programsDisk } from './machine-image.ts';
import { probeNetns } from './netns.ts';
import { PeerProcess, undoAtEnd } from './process.ts';

/** A program, or set of programs, that tests or benchmarks run against. */
export type Peer = 'qemu' | 'libvirt' | 'dpdk' | 'dpdk-vhost' | 'ovs' | 'gcc' | 'netns' | 'dhcp' | 'iperf3' | 'machine';

/** What {@link ensurePeers} found or could do. */
export interface PeersResult {
  present: Set<Peer>;
  leftOut: { peer: Peer; why: string }[];
}

interface PeerNeeds {
  packages: readonly string[];
  /** Brought about after the packages are there. */
  prepare?: () => Promise<unknown>;
}

const NEEDS: Record<Peer, PeerNeeds> = {
  // the guest image is unpacked from packages that are fetched, not installed: see test/guest/mkguest.sh
  qemu: { packages: ['qemu-system-x86', 'xz-utils'], prepare: () => guestImage() },
  dpdk: { packages: ['dpdk', 'dpdk-dev'] }, // Debian has dpdk-testpmd in dpdk-dev
  gcc: { packages: ['gcc', 'libc6-dev'] },
  // the sample's source is in dpdk-doc, which bench/peers/dpdk-vhost.ts fetches and unpacks without installing it
  'dpdk-vhost': { packages: ['gcc', 'libc6-dev', 'make', 'pkg-config', 'libdpdk-dev', 'dpdk'] },
  // its daemon alone: what Debian puts around it starts services and asks for firewalls
  libvirt: {
    packages: ['libvirt-daemon', 'libvirt-daemon-driver-qemu', 'libvirt-clients', 'iproute2'],
    prepare: async () => probeLibvirt(),
  },
  netns: { packages: ['iproute2', 'procps'], prepare: async () => probeNetns() },
  machine: {
    packages: ['qemu-system-x86', 'xz-utils', 'dpdk', 'dpdk-dev', 'e2fsprogs', 'iproute2'],
    prepare: async () => {
      await guestImage();
      await programsDisk();
    },
  },
  dhcp: { packages: ['udhcpd'] },
  iperf3: { packages: ['iperf3'] },
  ovs: { packages: ['openvswitch-switch-dpdk', 'openvswitch-switch', 'openvswitch-common'] },
};

const POLICY_FILE = '/usr/sbin/policy-rc.d';
const APT_DEADLINE_MS = 10 * 60_000;

/**
 * Sees to it that peers can be used: installs what their packages lack (as root, with apt) and prepares them.
 * With CI=true a peer that cannot be had is an error.
 */
export async function ensurePeers(peers: readonly Peer[]): Promise<PeersResult> {
  const result: PeersResult = { present: new Set(), leftOut: [] };
  const missing = missingPackages(peers.flatMap((peer) => NEEDS[peer].packages));
  let installError = '';
  if (missing.length > 0) {
    try {
      await install(missing);
    } catch (error) {
      installError = (error as Error).message;
    }
  }
  for (const peer of new Set(peers)) {
    try {
      const lacking = missingPackages(NEEDS[peer].packages);
      if (lacking.length > 0) throw new Error(`${lacking.join(', ')} not installed: ${installError}`);
      await NEEDS[peer].prepare?.();
      result.present.add(peer);
    } catch (error) {
      result.leftOut.push({ peer, why: (error as Error).message });
    }
  }
  if (process.env.CI === 'true' && result.leftOut.length > 0) {
    throw new Error(result.leftOut.map(({ peer, why }) => `peer ${peer} is missing: ${why}`).join('\n'));
  }
  return result;
}

/** The version of an installed Debian package, such as "22.11.11-0+deb12u1"; undefined when it is not installed. */
export function packageVersion(name: string): string | undefined {
  return installedVersions([name]).get(name);
}

function missingPackages(names: readonly string[]): string[] {
  const installed = installedVersions(names);
  return [...new Set(names)].filter((name) => !installed.has(name));
}

function installedVersions(names: readonly string[]): Map<string, string> {
  const versions = new Map<string, string>();
  if (names.length === 0) return versions;
  let answer = '';
  try {
    // its status is 1 when one of the names is unknown; the others are printed all the same
    // biome-ignore lint/suspicious/noTemplateCurlyInString: dpkg's own variables
    const format = '${Package} ${db:Status-Status} ${Version}\\n';
    answer = execFileSync('dpkg-query', ['-W', '-f', format, ...names], { encoding: 'utf8', stdio: 'pipe' });
  } catch (error) {
    answer = String((error as { stdout?: unknown }).stdout ?? '');
  }
  for (const line of answer.split('\n')) {
    const [name, status, version] = line.split(' ');
    if (status === 'installed') versions.set(name, version);
  }
  // virtual names, such as pkg-config by pkgconf in later releases
  for (const name of names) {
    if (!versions.has(name) && name === 'pkg-config' && existsSync('/usr/bin/pkg-config')) versions.set(name, '');
  }
  return versions;
}

async function install(packages: readonly string[]): Promise<void> {
  if (process.getuid?.() !== 0) throw new Error('only root can install packages');
  if (!existsSync('/usr/bin/apt-get')) throw new Error('this system has no apt-get');
  console.log(`peers: installing ${packages.join(' ')}`);
  const allowServices = forbidServices();
  try {
    await aptGet(['update']);
    await aptGet(['install', '-y', '--no-install-recommends', ...packages]);
  } finally {
    allowServices();
  }
}

async function aptGet(args: readonly string[]): Promise<void> {
  const apt = new PeerProcess({
    name: `apt-get ${args[0]}`,
    command: 'apt-get',
    args: ['-q', '-o', 'DPkg::Lock::Timeout=300', '-o', 'Dpkg::Use-Pty=0', ...args],
    env: { DEBIAN_FRONTEND: 'noninteractive' },
  });
  let told = 0;
  const tell = () => {
    const news = apt.outputSince(told);
    const end = news.lastIndexOf('\n') + 1;
    told += end;
    for (const line of news.slice(0, end).split('\n')) {
      if (/^(Get:|Unpacking|Setting up|E:|W:)/.test(line)) console.log(`peers: ${line}`);
    }
    return apt.endedHow !== undefined;
  };
  try {
    await apt.waitUntil('the end', tell, APT_DEADLINE_MS);
  } finally {
    await apt.stop();
  }
  if (apt.endedHow !== 'ended with status 0') throw new Error(`${apt.name} ${apt.endedHow}: ${apt.lastLines(5)}`);
}

/** Keeps packages from starting their services (Open vSwitch would), by Debian's own means. Returns the way back. */
function forbidServices(): () => void {
  if (existsSync(POLICY_FILE)) return () => {};
  const policy = '#!/bin/sh\n# vhost-switch test harness, removed after apt-get\nexit 101\n';
  writeFileSync(POLICY_FILE, policy, { mode: 0o755 });
  const remove = () => {
    if (existsSync(POLICY_FILE) && readFileSync(POLICY_FILE, 'utf8') === policy) rmSync(POLICY_FILE);
  };
  const keep = undoAtEnd(remove);
  return () => {
    remove();
    keep();
  };
}
