/** What tests do with Linux guests: boot them on a back end, ping, run TCP, pass files, look at features. */
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { QemuGuest, type QemuGuestOptions } from '../peers/qemu.ts';
import { macOf } from './traffic.ts';

/** IPv4 address of guest `n`, whose MAC address is macOf(n). */
export const ipOf = (n: number): string => `10.0.0.${n}`;

/** A guest that is not started: number `n` on a socket. */
export function linuxGuest(n: number, socket: string, options: Partial<QemuGuestOptions> = {}): QemuGuest {
  return new QemuGuest({ name: `g${n}`, socket, mac: macOf(n), ip: `${ipOf(n)}/24`, ...options });
}

/** Boots guests at the same time; if one does not come up, none stays. */
export async function startAll(guests: readonly QemuGuest[]): Promise<void> {
  const outcomes = await Promise.allSettled(guests.map((guest) => guest.start()));
  const failed = outcomes.find((outcome) => outcome.status === 'rejected');
  if (failed === undefined) return;
  await Promise.all(guests.map((guest) => guest.stop()));
  throw failed.reason;
}

/** Runs a command that must end with status 0. @returns what it printed */
export async function sh(guest: QemuGuest, command: string, timeoutMs = 30_000): Promise<string> {
  const { status, output } = await guest.sh(command, timeoutMs);
  assert.equal(status, 0, `${guest.options.name}: ${command}: ${output}`);
  return output;
}

/** Three pings that must be answered. `more`: options of busybox's ping, such as `-s 1400`. */
export async function assertPing(from: QemuGuest, ip: string, more = ''): Promise<void> {
  await sh(from, `ping -c 3 -W 5 ${more} ${ip}`);
}

/** Waits until a guest is answered: the other's driver, or its back end, needs a moment to come back. */
export async function untilPing(from: QemuGuest, ip: string, ms = 20_000): Promise<void> {
  const giveUpAt = performance.now() + ms;
  for (;;) {
    const { status, output } = await from.sh(`ping -c 1 -W 1 ${ip}`);
    if (status === 0) return;
    assert.ok(performance.now() < giveUpAt, `no answer from ${ip} within ${ms} ms\n${output}`);
  }
}

/** How TCP is run. */
export interface TcpOptions {
  readonly seconds?: number;
  readonly streams?: number;
  /** Seconds in a row in which nothing may be sent, as when rings are changed meanwhile. Default 0. */
  readonly pause?: number;
}

/** TCP that runs in the background. */
export interface TcpRun {
  /** Waits for its end; fails if it stalled. @returns bits a second */
  finish(): Promise<number>;
}

/** Starts TCP from one guest to guest `n`. */
export async function startTcp(from: QemuGuest, to: QemuGuest, n: number, options: TcpOptions = {}): Promise<TcpRun> {
  const { seconds = 2, streams = 1, pause = 0 } = options;
  await sh(to, 'killall iperf3 2>/dev/null; rm -f /tmp/iperf.log; iperf3 -s -D -1 --logfile /tmp/iperf.log');
  await sleep(300); // until it listens
  const file = '/tmp/iperf.json';
  const command = `iperf3 -c ${ipOf(n)} -t ${seconds} -P ${streams} -J`;
  await sh(from, `rm -f ${file}; (${command} >${file}.part 2>&1; mv ${file}.part ${file}) >/dev/null 2>&1 &`);
  return {
    async finish() {
      await sh(from, `until [ -e ${file} ]; do usleep 100000; done`, (seconds + 40) * 1000);
      const report = JSON.parse(await sh(from, `cat ${file}`)) as IperfReport;
      const { error = '' } = report;
      assert.equal(
        error,
        '',
        `iperf3's server said: ${error && (await to.sh('cat /tmp/iperf.log; dmesg | tail -5')).output}`,
      );
      return judgeTcp(report, seconds, pause);
    },
  };
}

interface IperfReport {
  readonly error?: string;
  readonly intervals: readonly { sum: { bytes: number } }[];
  readonly end: { sum_received: { bytes: number; bits_per_second: number } };
}

function judgeTcp({ intervals, end }: IperfReport, seconds: number, pause: number): number {
  const moved = intervals.map(({ sum }) => sum.bytes);
  let still = 0;
  // what the sender's buffer takes counts for the first one
  for (const bytes of moved.slice(1)) {
    still = bytes > 0 ? 0 : still + 1;
    assert.ok(still <= pause, `TCP stalled; bytes in each second: ${moved}`);
  }
  assert.ok(end.sum_received.bytes > seconds * 2e5, `only ${end.sum_received.bytes} bytes in ${seconds} s: ${moved}`);
  return end.sum_received.bits_per_second;
}

/** TCP from one guest to guest `n`. No second may pass without progress. @returns bits a second */
export async function assertTcp(from: QemuGuest, to: QemuGuest, n: number, options: TcpOptions = {}): Promise<number> {
  return (await startTcp(from, to, n, options)).finish();
}

const FILE_PORT = 5001;

/** Passes `mib` MiB of random bytes over TCP to guest `n`; what arrives must be what was sent. */
export async function assertFilePasses(from: QemuGuest, to: QemuGuest, n: number, mib = 8): Promise<void> {
  // busybox's nc ends when the other side does, with the rest unsent
  await sh(to, `rm -f /tmp/in /tmp/done; (nc.openbsd -l ${FILE_PORT} >/tmp/in; touch /tmp/done) >/dev/null 2>&1 &`);
  await sh(to, `until netstat -ltn | grep -q :${FILE_PORT}; do usleep 50000; done`);
  const sum = (file: string) => `sha256sum ${file} | cut -d' ' -f1`;
  await sh(from, `dd if=/dev/urandom of=/tmp/out bs=1M count=${mib} 2>/dev/null`, 60_000);
  const sent = await sh(from, sum('/tmp/out'), 60_000);
  await sh(from, `nc.openbsd -N ${ipOf(n)} ${FILE_PORT} </tmp/out`, 120_000);
  await sh(to, 'until [ -e /tmp/done ]; do usleep 50000; done', 60_000);
  assert.equal(await sh(to, sum('/tmp/in'), 60_000), sent, `the file from ${from.options.name} arrived otherwise`);
  for (const guest of [from, to]) await sh(guest, 'rm -f /tmp/in /tmp/out');
}

/** The driver of eth0 has negotiated feature `bit`, or has not. */
export async function assertFeature(guest: QemuGuest, bit: number, expected = true): Promise<void> {
  const features = await guest.features();
  assert.equal(((features >> BigInt(bit)) & 1n) === 1n, expected, `${guest.options.name}: feature ${bit}`);
}

/** Feature bits by name, for {@link assertFeature}. */
export const FEATURE = {
  csum: 0,
  guestCsum: 1,
  guestTso4: 7,
  hostTso4: 11,
  mergeable: 15,
  guestAnnounce: 21,
  mq: 22,
  eventIdx: 29,
  version1: 32,
  accessPlatform: 33,
  packed: 34,
} as const;
