/**
 * net_tap on the main thread: makes the interface, or takes one that is there, and watches it.
 */
import { closeSync } from 'node:fs';
import { ConfigError, SwitchError } from '../errors.ts';
import { firstOffset, unmapFrom, type WindowHandle } from '../mem/window.ts';
import { bringUp, openTap, setAddress, setPersistent } from '../sys/tap.ts';
import type { DeviceOpening, LinkState, OpenedDevice } from './device-port.ts';
import { kernelAccepts } from './kernel-frame.ts';
import { LinkWatch } from './link-watch.ts';
import { TAP_HEADER_BYTES, TAP_QUEUE_BYTES, type TapSpec } from './tap-port.ts';
import {
  describeInterface,
  findUplink,
  type InterfacePlace,
  inNamespace,
  interfacePlace,
  withAdvice,
} from './uplink-interface.ts';
import type { VdevOf } from './vdev.ts';

const PAGE = 4096;
const RIGHT = 'CAP_NET_ADMIN';

type TapVdev = VdevOf<'net_tap'>;

/** The address that `mac=` asks for: DPDK's fixed one is "dtap" and the device's number. */
function addressBytes(mac: string, number: number): Uint8Array {
  if (mac === 'fixed') return Uint8Array.from([0, ...Buffer.from('dtap'), number & 0xff]);
  return Uint8Array.from(mac.split(':'), (byte) => Number.parseInt(byte, 16));
}

/** What to do about a TAP that cannot be opened. */
function explained(error: unknown, uplink: string, place: InterfacePlace): unknown {
  const { code } = error as { code?: string };
  const fail = (problem: string) => new SwitchError('UPLINK_UNUSABLE', `${uplink}: ${problem}`);
  if (code === 'ENOENT') return fail('there is no /dev/net/tun; load the module: modprobe tun');
  if (code === 'EBUSY') return fail(`${describeInterface(place)} is used by another program`);
  if (code === 'EINVAL') {
    const problem = 'is no TAP interface, or one with another number of queues';
    return fail(`${describeInterface(place)} ${problem}; name one that is not there yet, or see ip -d link`);
  }
  return withAdvice(error, uplink, place, RIGHT);
}

/** Opens `net_tap…`, by default the interface dtapN. Throws SwitchError (UPLINK_…), ConfigError; nothing is left open then. */
export function openTapDevice(vdev: TapVdev, { pool, lcores }: DeviceOpening): OpenedDevice<TapSpec> {
  const { iface = `dtap${vdev.number}`, mac, remote, persist } = vdev.values;
  if (remote !== undefined) {
    const instead = `use --vdev net_af_packet${vdev.number},iface=${remote} instead`;
    throw new ConfigError('CONFIG_NOT_YET', '--vdev', `remote is not in this version; ${instead}`, {
      value: vdev.name,
    });
  }
  const place = interfacePlace(iface);
  const fds: number[] = [];
  try {
    inNamespace(vdev.name, place, () => {
      for (let i = 0; i < lcores; i++) fds.push(openTap(place.name, TAP_HEADER_BYTES, lcores > 1));
      if (persist !== undefined) setPersistent(fds[0], persist);
      if (mac !== undefined) setAddress(place.name, addressBytes(mac, vdev.number));
      bringUp(place.name);
    });
    const found = findUplink(vdev.name, place);
    const watch = new LinkWatch(place, found);
    return new OpenedTap(vdev.name, found.address, found.mtu, watch, fds, pool);
  } catch (error) {
    for (const fd of fds) closeSync(fd);
    throw explained(error, vdev.name, place);
  }
}

class OpenedTap implements OpenedDevice<TapSpec> {
  readonly name: string;
  readonly mac: Uint8Array;
  readonly mtu: number;
  readonly #watch: LinkWatch;
  readonly #fds: readonly number[];
  readonly #pool: DeviceOpening['pool'];
  readonly #window: WindowHandle;

  constructor(
    name: string,
    mac: Uint8Array,
    mtu: number,
    watch: LinkWatch,
    fds: readonly number[],
    pool: DeviceOpening['pool'],
  ) {
    this.name = name;
    this.mac = mac;
    this.mtu = mtu;
    this.#watch = watch;
    this.#fds = fds;
    this.#pool = pool;
    this.#window = pool.acquire();
  }

  get link(): LinkState {
    return this.#watch.state;
  }

  onLink(told: (link: LinkState) => void): void {
    this.#watch.onLink(told);
  }

  /** Each lcore has a queue of its own. */
  spec(lcore: number): TapSpec {
    const window = this.#window;
    const off = firstOffset(window, PAGE) + lcore * TAP_QUEUE_BYTES;
    return { windows: [window], window, off, fd: this.#fds[lcore], accepts: kernelAccepts() };
  }

  close(): Promise<void> {
    this.#watch.close();
    for (const fd of this.#fds) closeSync(fd);
    const bytes = Math.ceil((this.#fds.length * TAP_QUEUE_BYTES) / PAGE) * PAGE;
    unmapFrom(this.#window, firstOffset(this.#window, PAGE), bytes);
    this.#pool.release(this.#window);
    return Promise.resolve();
  }
}
