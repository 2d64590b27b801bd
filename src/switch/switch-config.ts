/**
 * How the switch behaves; survives postMessage.
 */

export interface SwitchConfig {
  /** 'dynamic': as an L2 switch does; 'first': the sample program's rule, one address a device, from its first frame */
  readonly learning: 'dynamic' | 'first';
  /** 0: guests reach only the uplink; 1: and each other, in software */
  readonly vm2vm: 0 | 1;
  /** seconds after which an unseen address is forgotten, 0 for never */
  readonly macAgeing: number;
  /** addresses in all */
  readonly macTableSize: number;
  /** addresses for each port */
  readonly macLimit: number;
  /** port numbers are below this */
  readonly maxPorts: number;
}

/** A device has shown its first address: the sample's registration. The address is two words as in MacTable. */
export type OnRegistered = (port: number, first: number, last: number) => void;
/** A device uses an address that another one has registered (--learning first). */
export type OnDuplicate = (port: number, first: number, last: number) => void;
