/**
 * Counters in shared memory: one thread writes a block, every thread may read it. The packet path adds once per burst.
 * Slots are float64, exact to 2⁵³.
 */

/**
 * A port's counters, seen from the guest: tx is what it sends, rx what it gets. An uplink's tx is what comes in from outside, and its rx
 * what goes out. The order is the order of the slots.
 */
const PORT_COUNTERS = {
  tx_packets: 'frames taken from the guest',
  tx_bytes: 'their bytes',
  tx_forwarded: 'frames that reached a guest or an uplink; a flooded one counts once',
  tx_drop_runt: 'frames shorter than an Ethernet header',
  tx_drop_too_long: 'frames longer than 9728 bytes',
  tx_drop_bad_source: 'frames from a multicast address',
  tx_drop_link_local: 'frames to 01:80:c2:00:00:00 to 0f, which no switch forwards',
  tx_drop_unregistered: 'frames of a device that has not been registered (--learning first)',
  tx_drop_self: 'frames to an address on the same port, or from the uplink to one outside',
  tx_drop_no_uplink: 'frames for the uplink, of which there is none',
  tx_drop_alone: 'flooded frames while there is no other guest',
  tx_drop_disabled: 'frames of a disabled ring, which are thrown away',
  tx_drop_receiver: 'unicast frames that the receiver had no room for',
  rx_packets: 'frames delivered to the guest',
  rx_bytes: 'their bytes',
  rx_drop_no_buffer: 'frames that found no receive buffer',
  rx_drop_too_big: 'frames longer than the receive buffers',
  rx_drop_fault: 'frames lost when the receive ring was stopped',
  rx_drop_not_ready: 'frames for a guest whose receive ring is stopped or disabled',
  mac_learned: 'addresses learned',
  mac_moved: 'addresses taken over from another port',
  mac_refused: 'addresses not learned: the table or the port is full, or the address is registered elsewhere',
  calls: 'notifications sent to the guest',
  calls_suppressed: 'notifications that the guest did not want',
  calls_failed: 'notifications that its eventfd did not take',
  ring_fault_avail_jump: 'rings stopped: the avail index ran ahead by more than the ring',
  ring_fault_head_range: 'rings stopped: a head beyond the table',
  ring_fault_desc_range: 'rings stopped: a chain leaving the table',
  ring_fault_chain_loop: 'rings stopped: a looping chain',
  ring_fault_address: 'rings stopped: a descriptor outside guest memory',
  ring_fault_zero_length: 'rings stopped: a descriptor of length zero',
  ring_fault_direction: 'rings stopped: a write-only descriptor to read, or the other way round',
  ring_fault_indirect: 'rings stopped: a malformed or nested indirect table',
  tx_drop_bad_offload: 'frames whose header asks for an offload that makes no sense or was not negotiated',
  rx_drop_bad_offload: 'frames that could not be cut into what the guest takes: their headers are malformed',
  rx_drop_iotlb_miss: 'frames lost while a translation was missing',
  ring_fault_no_header: 'rings stopped: a chain shorter than the packet header',
  ring_fault_inflight: 'rings stopped: inflight records of an unknown version, broken, or of another ring',
  tx_drop_tagged: 'frames with a VLAN tag of the guest’s own, which it may not choose',
  tx_drop_vlan: 'frames of a VLAN that the port is not in, or that no guest is in',
  tx_drop_unknown: 'frames from the uplink to an address that no guest of the VLAN has',
  rx_drop_mtu: 'frames longer than the uplink’s MTU',
  tx_missed: 'frames that an uplink lost before they were taken, for want of room; not part of tx_packets',
  rx_drop_refused: 'frames that the kernel behind an uplink refused',
} as const;

/** A vring's counters, under DPDK's names. The sizes come first, in the order of the burst's tally. */
const VRING_COUNTERS = {
  undersize_packets: 'frames shorter than 64 bytes',
  size_64_packets: 'frames of 64 bytes',
  size_65_127_packets: 'frames of 65 to 127 bytes',
  size_128_255_packets: 'frames of 128 to 255 bytes',
  size_256_511_packets: 'frames of 256 to 511 bytes',
  size_512_1023_packets: 'frames of 512 to 1023 bytes',
  size_1024_1518_packets: 'frames of 1024 to 1518 bytes',
  size_1519_max_packets: 'longer frames',
  good_packets: 'frames taken from the ring, or delivered to it',
  good_bytes: 'their bytes',
  multicast_packets: 'of these, to multicast addresses',
  broadcast_packets: 'of these, to the broadcast address',
  guest_notifications: 'notifications sent to the guest',
  guest_notifications_suppressed: 'notifications that the guest did not want',
  guest_notifications_error: 'notifications that its eventfd did not take',
  iotlb_misses: 'translations that the ring lacked and asked for',
} as const;

/** A guest's lane's counters, by which what passes without a copy can be told from what does not. */
const LANE_COUNTERS = {
  tx_posted: 'frames of the guest that were given to the uplink where they lie',
  tx_completed: 'of these, those that have been sent, so that the guest has its buffers back',
  tx_copied: 'frames of the guest that were copied: in too many pieces, or with a checksum left undone',
  rx_posted: 'receive buffers that were given to the uplink to write into',
  rx_completed: 'of these, those that a frame has come in',
  rx_taken_back: 'of these, those that no frame has come in when the lane was closed',
  rx_copied: 'frames that were copied into receive buffers: broadcasts, and those to addresses that have no lane',
  rx_returned: 'receive buffers that were given back empty: too small, or in pieces',
  rx_drop_too_big: 'frames that the program in the kernel dropped, which were longer than the MTU allows',
  rx_drop_no_buffer: 'frames that the kernel dropped for want of a receive buffer',
} as const;

/** An lcore's counters. */
const LCORE_COUNTERS = {
  rounds: 'times around the poll loop',
  bursts: 'bursts switched',
  sleeps: 'times it went to sleep',
  commands: 'commands carried out for the main thread',
  busy_us: 'time with packets, in microseconds',
  idle_us: 'time looking for packets in vain',
  sleep_us: 'time asleep',
} as const;

/** Maps each counter's name to its slot. */
export type SlotTable<Name extends string = string> = { readonly [K in Name]: number };

function slots<Name extends string>(help: Record<Name, string>): SlotTable<Name> {
  return Object.fromEntries(Object.keys(help).map((name, i) => [name, i])) as SlotTable<Name>;
}

/** Name of a counter that every port has. */
export type PortCounter = keyof typeof PORT_COUNTERS;
/** What each of a port's counters counts. */
export const PORT_COUNTER_HELP: Readonly<Record<PortCounter, string>> = PORT_COUNTERS;
/** Where each counter is in a port's `counters`. */
export const PORT_SLOTS = slots(PORT_COUNTERS);
/** The name of a vring's counter. */
export type VringCounter = keyof typeof VRING_COUNTERS;
/** What each of a vring's counters counts. */
export const VRING_COUNTER_HELP: Readonly<Record<VringCounter, string>> = VRING_COUNTERS;
export const VRING_SLOTS = slots(VRING_COUNTERS);
/** The name of a lane's counter. */
export type LaneCounter = keyof typeof LANE_COUNTERS;
/** What each of a lane's counters counts. */
export const LANE_COUNTER_HELP: Readonly<Record<LaneCounter, string>> = LANE_COUNTERS;
export const LANE_SLOTS = slots(LANE_COUNTERS);
/** The name of an lcore's counter. */
export type LcoreCounter = keyof typeof LCORE_COUNTERS;
/** What each of an lcore's counters counts. */
export const LCORE_COUNTER_HELP: Readonly<Record<LcoreCounter, string>> = LCORE_COUNTERS;
export const LCORE_SLOTS = slots(LCORE_COUNTERS);

/** A fresh block of zeros for the table's counters. */
export function counterBlock(table: SlotTable): SharedArrayBuffer {
  return new SharedArrayBuffer(8 * Object.keys(table).length);
}

/** Adds a block of counters, as they are now, to `total`. */
export function addBlock(total: Float64Array, block: SharedArrayBuffer): void {
  const values = new Float64Array(block);
  for (let slot = 0; slot < total.length; slot++) total[slot] += values[slot];
}

/** The counters of a block, as they are now, by name. */
export function readCounters<Name extends string>(
  table: SlotTable<Name>,
  block: ArrayBufferLike | Float64Array,
): Record<Name, number> {
  const values = block instanceof Float64Array ? block : new Float64Array(block);
  const names = Object.keys(table) as Name[];
  return Object.fromEntries(names.map((name) => [name, values[table[name]]])) as Record<Name, number>;
}

/** Frames from the guest that reached nobody, by all reasons together. */
export function txDropped(counters: Record<PortCounter, number>): number {
  return counters.tx_packets - counters.tx_forwarded;
}

/** Frames meant for the guest that it did not get. */
export function rxDropped(counters: Record<PortCounter, number>): number {
  const { rx_drop_no_buffer, rx_drop_too_big, rx_drop_fault, rx_drop_not_ready } = counters;
  const { rx_drop_iotlb_miss, rx_drop_bad_offload, rx_drop_mtu, rx_drop_refused } = counters;
  const ring = rx_drop_no_buffer + rx_drop_too_big + rx_drop_fault + rx_drop_not_ready + rx_drop_iotlb_miss;
  return ring + rx_drop_bad_offload + rx_drop_mtu + rx_drop_refused;
}
