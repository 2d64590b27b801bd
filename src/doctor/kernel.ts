/**
 * The kernel: its version, and what it was built with.
 */
import { gunzipSync } from 'node:zlib';
import { type Finding, failure, fine, warning } from './finding.ts';
import type { Source } from './source.ts';

const MAX_CONFIG_BYTES = 8 * 2 ** 20;

/** A release in words and numbers, such as 6.1.0-18-amd64. */
export interface KernelRelease {
  readonly text: string;
  readonly major: number;
  readonly minor: number;
}

/** The release that runs. */
export function kernelRelease(source: Source): KernelRelease {
  const text = source.text('/proc/sys/kernel/osrelease')?.trim() ?? '';
  const [, major = '0', minor = '0'] = /^(\d+)\.(\d+)/.exec(text) ?? [];
  return { text, major: Number(major), minor: Number(minor) };
}

/** Whether a release is `major.minor` or later. */
export function isAtLeast(release: KernelRelease, major: number, minor: number): boolean {
  return release.major > major || (release.major === major && release.minor >= minor);
}

/** The value of an option that the kernel was built with, `y` or `m`; `n` if it was built without, undefined if nobody knows. */
export function kernelOption(source: Source, name: string): string | undefined {
  const config = kernelConfig(source);
  if (config === undefined) return undefined;
  return new RegExp(`^${name}=(.*)$`, 'm').exec(config)?.[1] ?? 'n';
}

function kernelConfig(source: Source): string | undefined {
  const packed = source.bytes('/proc/config.gz');
  if (packed !== undefined) return gunzipSync(packed, { maxOutputLength: MAX_CONFIG_BYTES }).toString();
  return source.text(`/boot/config-${kernelRelease(source).text}`);
}

/** kernel.version. */
export function checkKernel(source: Source): Finding[] {
  const release = kernelRelease(source);
  const name = `Linux ${release.text}`;
  const mend = ['install a newer kernel of your distribution, and boot it'];
  if (!isAtLeast(release, 4, 18)) {
    const shows = 'Node and the switch need Linux 4.18: they do not start, or fail at calls that are not there';
    return [failure('kernel.version', `${name} is too old`, { shows, mend })];
  }
  if (!isAtLeast(release, 5, 9)) {
    const shows = 'net_af_xdp cannot be used (it needs Linux 5.9); everything else can';
    return [warning('kernel.version', `${name} has no AF_XDP that we can use`, { shows, mend })];
  }
  if (!isAtLeast(release, 5, 18)) {
    const shows = 'net_af_xdp works, but not with steer_queues (it needs Linux 5.18)';
    return [warning('kernel.version', `${name} cannot steer frames of an uplink`, { shows, mend })];
  }
  const segments = isAtLeast(release, 6, 2) ? '' : '; the switch cuts UDP segments of guests itself (before Linux 6.2)';
  return [fine('kernel.version', `${name}${segments}`)];
}
