/**
 * What connects the guests of a test: the switch, or, with BACK_END=dpdk in the environment, DPDK's testpmd. The latter proves
 * the tests themselves, and everything on the guests' side, without a line of the switch.
 */
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { DpdkTestpmd } from '../peers/dpdk.ts';
import type { Peer } from '../peers/packages.ts';
import { makeTempDir, removeTempDir } from '../peers/process.ts';
import { SwitchProcess } from './switch-process.ts';

/** Under test is DPDK's back end, not the switch. */
export const ON_DPDK = process.env.BACK_END === 'dpdk';

/** The peers a test file needs. */
export const peersFor = (...peers: Peer[]): Peer[] => (ON_DPDK ? [...new Set([...peers, 'dpdk' as const])] : peers);

/** What guests need the back end to offer beyond split rings. */
export interface Wants {
  /** Queue pairs. Default 1. */
  readonly queues?: number;
  /** MRG_RXBUF. Default true. */
  readonly mergeable?: boolean;
  /** Checksum and segmentation offloads. Default false. */
  readonly offloads?: boolean;
  /** ACCESS_PLATFORM. Default false. */
  readonly iommu?: boolean;
  /** Protocol feature PAGEFAULT. Default false. */
  readonly postcopy?: boolean;
  /** It connects to sockets that QEMU listens on. Default false. */
  readonly client?: boolean;
}

/** The switch's options for what guests want. */
function switchOptions({ mergeable = true, offloads, client, iommu, postcopy }: Wants): string[] {
  const options = ['--mergeable', mergeable ? '1' : '0'];
  if (offloads) options.push('--tx-csum', '1', '--tso', '1');
  if (client) options.push('--client');
  if (iommu) options.push('--iommu', '1');
  if (postcopy) options.push('--postcopy', '1');
  return options;
}

/** A running back end with sockets `0`, `1`, …: the switch joins all; DPDK joins 0 with 1, 2 with 3, and so on. */
export class BackEnd {
  /** Where guests connect, or listen if the back end is to be the client. */
  readonly sockets: readonly string[];
  readonly #dir: string;
  readonly #wants: Wants;
  #running: SwitchProcess | DpdkTestpmd | undefined;

  private constructor(sockets: number, wants: Wants) {
    this.#dir = makeTempDir('back-end');
    this.sockets = Array.from({ length: sockets }, (_, n) => join(this.#dir, `${n}`));
    this.#wants = wants;
  }

  /** Prepares the sockets' paths; `run` starts the back end. */
  static prepare(sockets: number, wants: Wants = {}): BackEnd {
    return new BackEnd(sockets, wants);
  }

  static async start(sockets: number, wants: Wants = {}): Promise<BackEnd> {
    const backEnd = new BackEnd(sockets, wants);
    try {
      await backEnd.run();
      return backEnd;
    } catch (error) {
      await backEnd.stop();
      throw error;
    }
  }

  /** Starts the back end, or starts it once more after `end`; `wants` replaces what it offered before. */
  async run(wants: Wants = this.#wants): Promise<void> {
    if (ON_DPDK) await this.#runDpdk(wants);
    else {
      const paths = this.sockets.flatMap((socket) => ['--socket-file', socket]);
      const line = [...paths, ...switchOptions(wants)];
      const up = wants.client ? /waiting for a front end that listens/ : /listening on /;
      this.#running = await SwitchProcess.start(line, { dir: this.#dir, wholeLine: true, up });
    }
  }

  async #runDpdk({ queues = 1, offloads = false, iommu = false, postcopy = false, client = false }: Wants) {
    // what a crash has left; DPDK removes no socket but its own
    if (!client) for (const socket of this.sockets) rmSync(socket, { force: true });
    // it polls beside guests under emulation, which have the same niceness
    const options = { name: 'back-end', nice: 10, queues, mbufs: 16384, memoryMiB: 256 };
    const testpmd = DpdkTestpmd.vhost(this.sockets, options, { tso: offloads, iommu, postcopy, client });
    this.#running = testpmd;
    await testpmd.start();
    await testpmd.startForwarding();
  }

  /** The switch; undefined when DPDK is under test. */
  get switch(): SwitchProcess | undefined {
    return this.#running instanceof SwitchProcess ? this.#running : undefined;
  }

  /** What it has printed. */
  get log(): string {
    if (this.#running instanceof SwitchProcess) return this.#running.output;
    return this.#running?.log ?? '';
  }

  /** Ends it, so that its sockets are gone; `kill` as in a crash, leaving them behind. */
  async end(how: 'stop' | 'kill' = 'stop'): Promise<void> {
    const running = this.#running;
    this.#running = undefined;
    if (running instanceof SwitchProcess) {
      if (how === 'kill') await running.kill();
      else await running.stop();
    } else if (running !== undefined) {
      if (how === 'kill') await running.kill9();
      await running.stop();
    }
  }

  /** Ends it by force if it must, and removes its folder. Any number of times. */
  async stop(): Promise<void> {
    await this.end('kill');
    removeTempDir(this.#dir);
  }
}
