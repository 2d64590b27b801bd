/** A switch with zero copy on one end of a virtual cable, and a host on the other; and what it says of its guests' lanes. */
import { readdirSync } from 'node:fs';
import { RawHost } from '../kit/raw-host.ts';
import { type Cable, NetLab } from '../peers/netns.ts';
import { SwitchProcess } from './switch-process.ts';

const LANE = /: zero copy: its buffers go to the uplink as they are$/;

export class ZeroCopyWorld {
  readonly lab = new NetLab();
  readonly cable: Cable;
  readonly args: readonly string[];
  running!: SwitchProcess;
  host: RawHost;

  private constructor(args: readonly string[], mtu: number) {
    this.cable = this.lab.veth({ mtu });
    this.host = new RawHost(this.cable);
    const vdev = `net_af_xdp0,iface=${this.cable.near}`;
    this.args = ['--vdev', vdev, '-p', '0x1', '--vm2vm', '0', '--zero-copy', '1', '--stats', '1', ...args];
  }

  /** @param args of the switch, beside its uplink @param mtu of the cable */
  static async start(args: readonly string[] = [], mtu = 1500): Promise<ZeroCopyWorld> {
    const world = new ZeroCopyWorld(args, mtu);
    try {
      world.running = await SwitchProcess.start(world.args);
      return world;
    } catch (error) {
      await world.close();
      throw error;
    }
  }

  /** Waits until device `id` has a lane that was opened after `mark`. */
  async lane(id = 0, mark = 0): Promise<void> {
    await this.running.line(new RegExp(`device ${id}${LANE.source}`), mark, 20_000);
  }

  /** A counter of device `id`'s lane, as last printed; of the device or the uplink with their names. */
  counter(name: string, id = 0): number {
    const tables = this.running.output.split(`Statistics for device ${id} -`);
    const value = new RegExp(`^ *zero copy ${name}: +(\\d+)$`, 'm').exec(tables.at(-1) ?? '')?.[1];
    return Number(value ?? Number.NaN);
  }

  /** Waits until the counter, as it is printed once a second, is as wanted. */
  async untilCounter(name: string, wanted: (value: number) => boolean, id = 0): Promise<void> {
    const is = () => wanted(this.counter(name, id));
    try {
      await this.running.until(`${name} to be as it should`, is, 10_000);
    } catch (error) {
      throw new Error(`${(error as Error).message}: it is ${this.counter(name, id)}`);
    }
  }

  /** Interfaces of lanes that there are in this namespace. */
  get cables(): string[] {
    const own = `vs${this.running.pid}z`;
    return readdirSync('/sys/class/net').filter((name) => name.startsWith(own));
  }

  async close(): Promise<void> {
    await this.running?.kill();
    this.host.close();
    this.lab.remove();
  }
}
