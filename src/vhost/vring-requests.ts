/**
 * What a front end says of one vring, from its size to its eventfds: checks it, keeps it, and has the vring run by it.
 * @see QEMU docs/interop/vhost-user.rst "Front-end message types", SET_VRING_…
 */
import { ProtocolError } from '../errors.ts';
import { setNonblocking } from '../sys/eventfd.ts';
import type { Datapath } from './datapath.ts';
import { NO_FD, type VringAddresses } from './vhost-device.ts';
import { numProblem, type Vring } from './vring.ts';
import type { VringRunner } from './vring-runner.ts';

export class VringRequests {
  readonly #port: number;
  readonly #runner: VringRunner;
  readonly #datapath: Datapath;

  constructor(port: number, runner: VringRunner, datapath: Datapath) {
    this.#port = port;
    this.#runner = runner;
    this.#datapath = datapath;
  }

  #vring(index: number): Vring {
    return this.#runner.vrings[index];
  }

  #fail(request: string, vring: number, problem: string): never {
    throw new ProtocolError('BAD_VRING', request, `vring ${vring}: ${problem}`);
  }

  /**
   * 0 takes the vring away: DPDK sends it for queues that it does not use. What suits the ring's format shows only when it starts:
   * the features may come later.
   */
  async setNum(index: number, num: number): Promise<void> {
    const vring = this.#vring(index);
    const known = vring.started && this.#runner.isNegotiated;
    const problem = numProblem(known ? this.#runner.format : 'packed', num);
    if (problem !== undefined) this.#fail('SET_VRING_NUM', index, problem);
    if (num === vring.num) return;
    await this.#runner.change(vring, 'SET_VRING_NUM', () => {
      vring.num = num;
    });
  }

  /** A running ring goes on where only its flags change, as they do when a migration begins, unless it is logged elsewhere from now on. */
  async setAddr(index: number, addresses: VringAddresses): Promise<void> {
    const vring = this.#vring(index);
    const { descAddr, availAddr, usedAddr } = vring.addresses ?? {};
    const same =
      descAddr === addresses.descAddr && availAddr === addresses.availAddr && usedAddr === addresses.usedAddr;
    const change = () => {
      vring.addresses = addresses;
    };
    if (same && vring.running !== undefined) {
      change();
      await this.#runner.relog(vring);
    } else await this.#runner.change(vring, 'SET_VRING_ADDR', change);
  }

  async setBase(index: number, base: number): Promise<void> {
    if (base > 0xffff && this.#runner.isNegotiated && this.#runner.format === 'split')
      this.#fail('SET_VRING_BASE', index, `index ${base} is above 65535`);
    await this.#runner.change(this.#vring(index), 'SET_VRING_BASE', (vring) => {
      vring.base = base;
      vring.stoppedAt = undefined;
    });
  }

  async getBase(index: number, drain: boolean): Promise<number> {
    const vring = this.#vring(index);
    vring.started = false;
    await this.#runner.stop(vring, drain);
    vring.kick.close();
    return vring.stoppedAt ?? vring.baseOf(this.#runner.format);
  }

  async setKick(index: number, fd: number): Promise<void> {
    await this.#runner.change(this.#vring(index), 'SET_VRING_KICK', (vring) => {
      vring.kick.give(fd);
      vring.started = true;
    });
  }

  /** In-band. An eventfd that the front end has given goes before it. */
  async kick(index: number): Promise<void> {
    const vring = this.#vring(index);
    if (!vring.started)
      await this.#runner.change(vring, 'VRING_KICK', () => {
        vring.kick.makeOwn();
        vring.started = true;
      });
    vring.kick.signalOwn();
  }

  async setCall(index: number, fd: number): Promise<void> {
    if (fd !== NO_FD) setNonblocking(fd);
    const vring = this.#vring(index);
    if (vring.running !== undefined) await this.#datapath.setCall(this.#port, index, fd);
    vring.call.give(fd);
  }

  async setErr(index: number, fd: number): Promise<void> {
    if (fd !== NO_FD) setNonblocking(fd);
    await this.#runner.change(this.#vring(index), 'SET_VRING_ERR', ({ err }) => err.give(fd));
  }

  async setEnable(index: number, enabled: boolean): Promise<void> {
    const vring = this.#vring(index);
    vring.enabled = enabled;
    if (vring.running !== undefined) await this.#datapath.enableVring(this.#port, index, enabled);
  }

  setEndian(index: number, bigEndian: boolean): void {
    if (bigEndian)
      this.#fail('SET_VRING_ENDIAN', index, 'big-endian is not served; use a driver of VIRTIO 1.0 or later');
  }
}
