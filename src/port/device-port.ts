/**
 * Ports that are not guests of the switch: network interfaces, files, rings, other back ends. Each is opened once, on the main
 * thread, where what it needs may be refused; every lcore that uses it then makes a port of its own from what it is sent.
 */
import type { WindowHandle, WindowPool, WindowViews } from '../mem/window.ts';
import type { RingStage } from '../virtio-net/ring-stage.ts';
import type { Port } from './port.ts';
import type { SteeringTable } from './steering.ts';

/** What the ports of one thread share. */
export interface DeviceTools {
  /** its burst is what `receive` fills and `transmit` sends */
  readonly ringStage: RingStage;
  /** this thread's windows, by id: where the segments of a burst lie */
  readonly windows: readonly WindowViews[];
}

/** A port on the thread that uses it. */
export interface DevicePort extends Port {
  /** receive queues of this thread, 0 to n − 1 */
  readonly queues: number;
  /** The transmit queue that `transmit` uses, where there are several: as many as receive queues. */
  txQueue?: number | undefined;
  /** File descriptors that become readable when there is something to receive; the port's own. None: it must be looked at again and again. */
  readonly eventFds: readonly number[];
  /** Before the thread sleeps: sends what is held back. @returns false if frames have come meanwhile: then it is no time to sleep */
  prepareSleep(): boolean;
  /** About every 100 µs while busy, and at the end of every round with nothing to do: sends what is held back. */
  drain(): void;
  /** About once a second: takes over what is counted elsewhere. */
  tick?(): void;
  /** Closes what this thread's port has opened. */
  close(): void;
}

/** What an lcore makes its port from, beside what the kind needs; survives postMessage. */
export interface DeviceSpec {
  /** windows that no guest brings along, of the pool of {@link DeviceOpening} */
  readonly windows: readonly WindowHandle[];
}

/** What a port may use while it is opened, on the main thread. */
export interface DeviceOpening {
  /** the process's windows: what is acquired here is released when the device is closed */
  readonly pool: WindowPool;
  /** lcores that will use the port */
  readonly lcores: number;
}

/** The link of a port as its kernel, file or peer shows it. */
export interface LinkState {
  /** frames may pass */
  readonly up: boolean;
  /** Mbit/s, or 0 if unknown */
  readonly speed: number;
  /** bytes of the largest frame, as in OpenedDevice, where that may change */
  readonly mtu?: number;
  /** why it is down now, where that is known: for one line */
  readonly reason?: string;
  /** why it is down for good, if it is: the interface was removed, the file is at its end */
  readonly gone?: string;
}

/** A port as the main thread has it. `Spec` survives postMessage and says to an lcore what to make its port from. */
export interface OpenedDevice<Spec = DeviceSpec> {
  /** as given to --vdev: `net_af_packet0` */
  readonly name: string;
  /** its own address, 6 bytes, if it has one */
  readonly mac: Uint8Array | undefined;
  /** bytes of the largest frame, without Ethernet header and tag */
  readonly mtu: number;
  readonly link: LinkState;
  /** sentences for the user: what works otherwise than they may think */
  readonly notes?: readonly string[];
  /** which queue each {address, VLAN} comes by, if that can be said: queue n is lcore n's, modulo their number */
  readonly steering?: SteeringTable | undefined;
  /** It receives what is for other stations, too; absent: it cannot do otherwise. Set by `setPromiscuous`. */
  readonly promiscuous?: boolean;
  setPromiscuous?(on: boolean): void;
  /** For one of `lcores` lcores. */
  spec(lcore: number, lcores: number): Spec;
  /** Calls `told` whenever the link changes, until closed. */
  onLink(told: (link: LinkState) => void): void;
  /** Closes what the main thread has opened; after every thread has closed its port. */
  close(): Promise<void>;
}
