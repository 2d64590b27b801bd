/**
 * What a network device asks of the threads that serve it, beside what every device does.
 */
import type { Datapath } from '../vhost/datapath.ts';

export interface NetDatapath extends Datapath {
  /**
   * Switches a frame as if the guest behind the port had sent it: in each VLAN that it is in.
   * @param frame untagged, from its destination address on, without checksum; copied before this returns or resolves
   */
  inject(port: number, frame: Uint8Array): Promise<void> | void;
}
