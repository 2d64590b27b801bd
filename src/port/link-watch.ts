/**
 * Watches one network interface on the event loop: up, down, with another MTU, renamed, or gone.
 */
import { readFileSync } from 'node:fs';
import { type InterfaceInfo, LinkSocket } from '../sys/netlink.ts';
import { inNetns } from '../sys/netns.ts';
import { ReadWatch } from '../sys/unix-socket.ts';
import { IFF_RUNNING, IFF_UP } from '../uapi/rtnetlink.ts';
import type { LinkState } from './device-port.ts';
import { describeInterface, type InterfacePlace } from './uplink-interface.ts';

/** Mbit/s as sysfs has it, which shows this process's namespace alone; 0 where it does not. */
function speedOf({ netns, name }: InterfacePlace): number {
  if (netns !== undefined) return 0;
  try {
    return Math.max(0, Number(readFileSync(`/sys/class/net/${name}/speed`, 'utf8')));
  } catch {
    // EINVAL: the interface is down, or has no speed
    return 0;
  }
}

const stateOf = (place: InterfacePlace, { flags, mtu }: InterfaceInfo): LinkState => ({
  up: (flags & (IFF_UP | IFF_RUNNING)) === (IFF_UP | IFF_RUNNING),
  speed: speedOf(place),
  mtu,
});

export class LinkWatch {
  /** as it was last told */
  state: LinkState;
  readonly #place: InterfacePlace;
  readonly #index: number;
  readonly #socket: LinkSocket;
  readonly #watch: ReadWatch;
  readonly #listeners: ((link: LinkState) => void)[] = [];

  /** @param found the interface, whose number and not whose name counts from now on. Throws SysError. */
  constructor(place: InterfacePlace, found: InterfaceInfo) {
    this.#place = place;
    this.#index = found.index;
    this.state = stateOf(place, found);
    this.#socket = inNetns(place.netns, () => new LinkSocket(true));
    this.#watch = new ReadWatch(this.#socket.fd, () => this.#read());
    // it may have changed since it was found
    this.#socket.ask(found.index);
  }

  onLink(told: (link: LinkState) => void): void {
    this.#listeners.push(told);
  }

  #read(): void {
    const { events, overrun, missing } = this.#socket.read();
    for (const { gone, link } of events) {
      if (link.index === this.#index) this.#turn(gone ? this.#gone() : stateOf(this.#place, link));
    }
    if (missing) this.#turn(this.#gone());
    if (overrun) this.#socket.ask(this.#index);
  }

  #gone(): LinkState {
    return { up: false, speed: 0, gone: `${describeInterface(this.#place)} was removed` };
  }

  #turn(state: LinkState): void {
    const { up, mtu, gone } = this.state;
    if (gone !== undefined || (state.up === up && state.mtu === mtu && state.gone === gone)) return;
    this.state = state;
    for (const told of this.#listeners) told(state);
  }

  close(): void {
    this.#watch.close();
    this.#socket.close();
  }
}
