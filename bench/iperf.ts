/**
 * TCP by iperf3 with a Linux guest in QEMU as the client, for the benchmarks that need it.
 */
import { hasFeature } from '../src/uapi/virtio.ts';
import {
  VIRTIO_NET_F_CSUM,
  VIRTIO_NET_F_GUEST_CSUM,
  VIRTIO_NET_F_GUEST_TSO4,
  VIRTIO_NET_F_HOST_TSO4,
  VIRTIO_NET_F_MRG_RXBUF,
} from '../src/uapi/virtio-net.ts';
import type { QemuGuest } from '../test/peers/qemu.ts';
import { figure } from './report.ts';

export const PORT = 5201;
/** Slow start, which iperf3 leaves out of its result. */
const OMITTED_SECONDS = 1;
/** So much of a run's time at least must have passed. */
const CLOCK_TOLERANCE = 0.9;
const EXTRA_MS = 30_000;
/** Without any of these, segments of 64 KiB would not pass as they are. */
const NEEDED: Record<string, number> = {
  CSUM: VIRTIO_NET_F_CSUM,
  GUEST_CSUM: VIRTIO_NET_F_GUEST_CSUM,
  HOST_TSO4: VIRTIO_NET_F_HOST_TSO4,
  GUEST_TSO4: VIRTIO_NET_F_GUEST_TSO4,
  MRG_RXBUF: VIRTIO_NET_F_MRG_RXBUF,
};

/** What one run gave. */
export interface TcpRun {
  /** received, Gbit/s of payload */
  gbps: number;
  retransmits: number;
}

/** Runs a command that must succeed. @returns what it printed. */
export async function ran(guest: QemuGuest, command: string, timeoutMs?: number): Promise<string> {
  const { status, output } = await guest.sh(command, timeoutMs);
  if (status === 0) return output;
  throw new Error(`guest ${guest.options.name}: "${command}" ended with status ${status}: ${output.trim()}`);
}

/** @returns the features, in hex. Throws if a segment could not go through whole. */
export async function checkOffloads(guest: QemuGuest): Promise<string> {
  const features = await guest.features();
  const missing = Object.keys(NEEDED).filter((name) => !hasFeature(features, NEEDED[name]));
  const hex = `0x${features.toString(16)}`;
  if (missing.length === 0) return hex;
  throw new Error(`guest ${guest.options.name} has no ${missing.join(', ')}: its features are ${hex}`);
}

/**
 * One run from a guest to a server that listens, or with `reverse` the other way.
 * @param serverSaid asked when it failed
 */
export async function runClient(
  guest: QemuGuest,
  server: string,
  { seconds, streams, reverse = false }: { seconds: number; streams: number; reverse?: boolean },
  serverSaid: () => Promise<string>,
): Promise<TcpRun> {
  const from = performance.now();
  const way = reverse ? ' -R' : '';
  const client = `iperf3 -J -c ${server} -p ${PORT} -t ${seconds} -O ${OMITTED_SECONDS} -P ${streams}${way}`;
  const { output } = await guest.sh(client, 1000 * (seconds + OMITTED_SECONDS) + EXTRA_MS);
  const said = JSON.parse(output) as {
    error?: string;
    end: { sum_received: { bits_per_second: number; seconds: number }; sum_sent: { retransmits: number } };
  };
  const tookSeconds = (performance.now() - from) / 1000;
  if (said.error !== undefined)
    throw new Error(`iperf3: ${said.error}; its server said: ${(await serverSaid()).trim()}`);
  const { bits_per_second: rate, seconds: measured } = said.end.sum_received;
  // The rate is by the guest's clock, which under emulation may jump with the host's time-stamp counters.
  if (tookSeconds < CLOCK_TOLERANCE * (seconds + OMITTED_SECONDS) || measured < CLOCK_TOLERANCE * seconds)
    throw new Error(`a guest's clock jumped: ${measured} s by iperf3, ${figure(tookSeconds)} s here with its start`);
  return { gbps: rate / 1e9, retransmits: said.end.sum_sent.retransmits };
}
