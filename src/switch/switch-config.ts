/**
 * How the switch behaves; survives postMessage. What the rules are is told in docs/switching.md.
 */

export interface SwitchConfig {
  /** 'dynamic': as an L2 switch does; 'first': the sample program's rule, one address a device, from its first frame */
  readonly learning: 'dynamic' | 'first';
  /** 0: guests reach only the uplink; 1: and each other, in software; 2: each other by the switch behind the uplink */
  readonly vm2vm: 0 | 1 | 2;
  /** seconds after which an unseen address is forgotten, 0 for never */
  readonly macAgeing: number;
  /** addresses in all */
  readonly macTableSize: number;
  /** addresses for each device; an uplink may have half of the table */
  readonly macLimit: number;
  /** port numbers are below this, those of uplinks too */
  readonly maxPorts: number;
  /** the ports that lead out; none by default. Frames never go from one to another. */
  readonly uplinks?: readonly UplinkConfig[];
  /** what VLANs there are; by default none: tags are not looked at, and frames pass with what tags they have */
  readonly vlan?: VlanConfig;
  /** waiting for room in the receive rings of guests, for frames from an uplink; by default none */
  readonly rxRetry?: RxRetryConfig;
  /** guests may have lanes to the uplink, by which frames pass without a copy; by default none has */
  readonly zeroCopy?: boolean;
}

/** A port that leads out of the switch. */
export interface UplinkConfig {
  /** its number, which no device has */
  readonly port: number;
  /** bytes of the largest frame that may leave by it, without Ethernet header and VLAN tag */
  readonly mtu: number;
}

/** What the VLANs of a switch have in common. */
export interface VlanConfig {
  /**
   * For devices without a VLAN of their own (see {@link PortVlan}). 'device': one domain in software, and on the uplink tag 1000 + n
   * for device n. 'none': one domain, which has no tag on the uplink either.
   */
  readonly plan: 'device' | 'none';
  /** a frame that an access guest has tagged itself is dropped; or leaves as it is, never tagged twice; or in another tag (802.1ad) */
  readonly guest: 'drop' | 'trust' | 'qinq';
  /** guests get frames from the uplink without their tag */
  readonly strip: boolean;
}

/** The VLANs of one device: one that its frames are in, untagged; or several that it tells apart by its own tags. 1 to 4094. */
export type PortVlan =
  | {
      /** the VLAN */
      readonly access: number;
    }
  | {
      /** the VLANs */
      readonly trunk: readonly number[];
      /** that of its untagged frames; by default they are dropped */
      readonly native?: number | undefined;
    };

/** At most `num` waits of `delayUs` µs for each burst from an uplink, until what is in it for a guest fits the guest's ring. */
export interface RxRetryConfig {
  /** waits at most */
  readonly num: number;
  /** µs each */
  readonly delayUs: number;
}

/** The tag that device 0 has on the uplink by plan 'device'; device n has n more. */
export const FIRST_DEVICE_TAG = 1000;

/** A device has shown its first address: the sample's registration. The address is two words as in MacTable. */
export type OnRegistered = (port: number, first: number, last: number) => void;
/** A device uses an address that another one has registered (--learning first). */
export type OnDuplicate = (port: number, first: number, last: number) => void;
