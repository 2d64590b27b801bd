/**
 * Zero copy: opens a lane for each guest that can have one, and closes it before anything changes beneath it: rings, memory, the uplink.
 * Whatever stands in the way, the guest is served by copying.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { LcoreGroup } from '../lcore/lcore-group.ts';
import type { MappedFile } from '../mem/guest-memory.ts';
import type { WindowPool } from '../mem/window.ts';
import { LaneOpener, type OpenLane } from '../port/lane-opener.ts';
import { LANE_LINK } from '../port/lane-spec.ts';
import type { LaneSteering } from '../port/lane-steering.ts';
import type { DeviceMemory, VringConfig } from '../vhost/datapath.ts';
import { LimitedLog, type Log } from '../vhost-user/limited-log.ts';
import type { NetDatapath } from '../virtio-net/net-datapath.ts';

/** How long a closing lane waits for what the kernel is still sending. */
const SETTLE_MS = 1000;
const SETTLE_STEP_MS = 1;
/** Between two openings of a guest's lane: one that keeps starting its rings anew is served by copying meanwhile. */
const REOPEN_MS = 100;
/** The vrings of a lane: those of the first pair. */
const LANE_VRINGS = 2;

/** How many guest buffers the kernel may have at a time, powers of two. */
export interface ZeroCopyBuffers {
  /** to receive into */
  readonly rx: number;
  /** to be sent */
  readonly tx: number;
}

/** What zero copy needs of the switch. */
export interface ZeroCopyTools {
  readonly pool: WindowPool;
  readonly buffers: ZeroCopyBuffers;
  readonly log: Log;
}

/** A guest as zero copy sees it. */
interface Guest {
  readonly name: string;
  files(): readonly MappedFile[];
  /** the vrings of the lane that run, and are enabled; and whether they are such as a lane can use */
  readonly running: boolean[];
  readonly enabled: boolean[];
  readonly plain: boolean[];
  /** its memory may be handed to the kernel */
  memory: boolean;
  lane: OpenLane | undefined;
  /** more with each change: what was begun before is not wanted any more */
  epoch: number;
  /** when a lane was opened last, as performance.now has it; and what opens the next one, if that was just now */
  openedAt: number;
  timer: NodeJS.Timeout | undefined;
  /** what is being done with its lane */
  turn: Promise<void>;
  mac: Uint8Array | undefined;
  vlan: number;
  /** what was told of it last */
  told: string;
}

/** The uplink while it is there. */
interface Exit {
  readonly port: number;
  readonly steering: LaneSteering;
  up: boolean;
}

export class ZeroCopy implements NetDatapath {
  readonly #tools: ZeroCopyTools;
  readonly #opener: LaneOpener;
  readonly #log: LimitedLog;
  readonly #guests = new Map<number, Guest>();
  #lcores: LcoreGroup | undefined;
  #exit: Exit | undefined;

  /** Throws SwitchError (LANE_NO_RIGHTS), SysError. */
  constructor(tools: ZeroCopyTools) {
    this.#tools = tools;
    this.#log = new LimitedLog(tools.log, { burst: 200, perSecond: 10 });
    this.#opener = new LaneOpener(tools.pool);
  }

  /** The lcores have started. */
  useLcores(lcores: LcoreGroup): void {
    this.#lcores = lcores;
  }

  get #below(): LcoreGroup {
    return this.#lcores as LcoreGroup;
  }

  /** A device that has a port. @param files of its guest's memory, as they are when it is called */
  addGuest(id: number, name: string, files: () => readonly MappedFile[]): void {
    const no = () => Array<boolean>(LANE_VRINGS).fill(false);
    this.#guests.set(id, {
      ...{ name, files, running: no(), enabled: no(), plain: no(), memory: false, lane: undefined, epoch: 0 },
      ...{ openedAt: -REOPEN_MS, timer: undefined, turn: Promise.resolve(), mac: undefined, vlan: 0, told: '' },
    });
  }

  /** The uplink is there, and the lcores know it. */
  uplinkOpen(port: number, steering: LaneSteering, up: boolean): void {
    this.#exit = { port, steering, up };
    for (const id of this.#guests.keys()) this.#openLater(id);
  }

  uplinkLink(up: boolean): void {
    if (this.#exit === undefined) return;
    this.#exit.up = up;
    for (const [id, { lane }] of this.#guests) if (lane !== undefined) this.#setLink(id, up);
  }

  #setLink(id: number, up: boolean): void {
    Atomics.store(this.#below.laneShared(id), LANE_LINK, up ? 1 : 0);
  }

  /** The uplink is about to be closed; resolves when no lane uses it. */
  async uplinkGone(): Promise<void> {
    this.#exit = undefined;
    await Promise.all([...this.#guests.keys()].map((id) => this.#close(id)));
  }

  /** Frames to `mac`, 6 bytes, in `vlan` (0: without a tag) are for the guest, and no others. */
  register(id: number, mac: Uint8Array, vlan: number): void {
    const guest = this.#guests.get(id);
    if (guest === undefined) return;
    this.#unsteer(id, guest);
    guest.mac = mac;
    guest.vlan = vlan;
    this.#steer(id, guest);
  }

  #steer(id: number, { lane, mac, vlan, name }: Guest): void {
    if (lane === undefined || mac === undefined || this.#exit === undefined) return;
    try {
      this.#exit.steering.add(mac, vlan, id);
    } catch (error) {
      this.#log.log('warn', `${name}: its frames come by copying: ${(error as Error).message}`);
    }
  }

  #unsteer(id: number, { mac, vlan }: Guest): void {
    if (mac !== undefined) this.#exit?.steering.remove(mac, vlan, id);
  }

  // What a device asks of its datapath.

  async removePort(port: number): Promise<void> {
    await this.#close(port);
    this.#guests.delete(port);
    await this.#below.removePort(port);
  }

  async setMemory(port: number, memory: DeviceMemory): Promise<void> {
    await this.#close(port);
    const guest = this.#guests.get(port);
    // a log cannot tell of what the kernel writes, and translations come and go
    if (guest !== undefined) guest.memory = memory.log === undefined && !memory.iotlb;
    await this.#below.setMemory(port, memory);
    this.#openLater(port);
  }

  async startVring(port: number, vring: number, config: VringConfig): Promise<void> {
    await this.#below.startVring(port, vring, config);
    const guest = this.#guests.get(port);
    if (guest === undefined || vring >= LANE_VRINGS) return;
    guest.running[vring] = true;
    guest.enabled[vring] = config.enabled;
    guest.plain[vring] = config.ring.inflight === undefined;
    this.#openLater(port);
  }

  async stopVring(port: number, vring: number): Promise<number | undefined> {
    if (vring < LANE_VRINGS) {
      await this.#close(port);
      const guest = this.#guests.get(port);
      if (guest !== undefined) guest.running[vring] = false;
    }
    return this.#below.stopVring(port, vring);
  }

  async enableVring(port: number, vring: number, enabled: boolean): Promise<void> {
    if (vring < LANE_VRINGS && !enabled) await this.#close(port);
    await this.#below.enableVring(port, vring, enabled);
    const guest = this.#guests.get(port);
    if (guest === undefined || vring >= LANE_VRINGS) return;
    guest.enabled[vring] = enabled;
    this.#openLater(port);
  }

  setCall(port: number, vring: number, fd: number): Promise<void> {
    return this.#below.setCall(port, vring, fd);
  }

  inject(port: number, frame: Uint8Array): Promise<void> {
    return this.#below.inject(port, frame);
  }

  /** True while the guest can have a lane. */
  #can({ running, enabled, plain, memory }: Guest): boolean {
    return this.#exit !== undefined && memory && [running, enabled, plain].every((all) => all.every((yes) => yes));
  }

  /** Opens a guest's lane, if it can have one and has none, when what is being done with it has been done. */
  #openLater(id: number): void {
    const guest = this.#guests.get(id);
    if (guest === undefined || !this.#can(guest)) return;
    const { epoch, openedAt } = guest;
    const waitMs = openedAt + REOPEN_MS - performance.now();
    clearTimeout(guest.timer);
    if (waitMs > 0) {
      guest.timer = setTimeout(() => this.#openLater(id), waitMs).unref();
      return;
    }
    guest.turn = guest.turn.then(() => this.#open(id, guest, epoch));
  }

  async #open(id: number, guest: Guest, epoch: number): Promise<void> {
    const exit = this.#exit;
    if (guest.lane !== undefined || guest.epoch !== epoch || exit === undefined || !this.#can(guest)) return;
    guest.openedAt = performance.now();
    const { rx: rxBuffers, tx: txBuffers } = this.#tools.buffers;
    const { port: uplink, steering } = exit;
    try {
      const lane = await this.#opener.open({
        ...{ lane: id, uplink, steering, files: guest.files(), rxBuffers, txBuffers },
        wanted: () => guest.epoch === epoch,
      });
      if (lane === undefined) return;
      this.#setLink(id, exit.up);
      try {
        await this.#below.openLane(id, lane.spec);
      } catch (error) {
        lane.close();
        throw error;
      }
      guest.lane = lane;
      this.#steer(id, guest);
      this.#tell(guest, 'info', 'zero copy: its buffers go to the uplink as they are');
    } catch (error) {
      this.#tell(guest, 'warn', `no zero copy, its frames are copied: ${(error as Error).message}`);
    }
  }

  /** What is the same as before is not told again. */
  #tell(guest: Guest, level: 'info' | 'warn', text: string): void {
    if (guest.told === text) return;
    guest.told = text;
    this.#log.log(level, `${guest.name}: ${text}`);
  }

  /** Closes a guest's lane, if it has one; resolves when the guest has back what the kernel had of it. */
  #close(id: number): Promise<void> {
    const guest = this.#guests.get(id);
    if (guest === undefined) return Promise.resolve();
    guest.epoch++;
    clearTimeout(guest.timer);
    guest.turn = guest.turn.then(() => this.#closeNow(id, guest));
    return guest.turn;
  }

  async #closeNow(id: number, guest: Guest): Promise<void> {
    const { lane } = guest;
    if (lane === undefined) return;
    this.#unsteer(id, guest);
    guest.lane = undefined;
    lane.quiet();
    try {
      const giveUpAt = performance.now() + SETTLE_MS;
      while ((await this.#below.settleLane(id)) > 0 && performance.now() < giveUpAt) await sleep(SETTLE_STEP_MS);
      await this.#below.closeLane(id);
    } catch (error) {
      // the lcore has failed, which is told elsewhere: what it had of the guest is lost
      this.#log.log('error', `${guest.name}: its buffers are lost: ${(error as Error).message}`);
    } finally {
      lane.close();
    }
  }

  /** No device has a port any more. */
  async close(): Promise<void> {
    await Promise.all([...this.#guests.keys()].map((id) => this.#close(id)));
    this.#opener.close();
    this.#log.flush();
  }
}
