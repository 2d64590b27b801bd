/**
 * What a net device asks of the threads that switch its packets, beside what every device does.
 */
import type { Datapath } from '../vhost/datapath.ts';

export interface NetDatapath extends Datapath {
  /** Switches a frame as if the guest behind port `port` had sent it. */
  inject(port: number, frame: Uint8Array): Promise<void> | void;
}
