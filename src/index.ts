/**
 * vhost-switch as a library: a whole switch, or the pieces to write a vhost-user back end of one's own: for a network device, or for
 * a device of any other type.
 */

export {
  type BackEndProgram,
  type OptionTable,
  type OptionValue,
  type OptionValues,
  type ProgramDevices,
  runBackEnd,
} from './cli/back-end-program.ts';
export { FLAG, integer, type Option, TEXT, type ValueType } from './cli/options.ts';
export { DeviceHost, type DeviceHostOptions, type DeviceType, ReadOnlyConfig } from './control/device-host.ts';
export type { PortRequest, UplinkInfo } from './control/uplinks.ts';
export { VhostHost, type VhostHostEvents, type VhostHostOptions } from './control/vhost-host.ts';
export { type DeviceInfo, type LcoreInfo, VhostSwitch, type VhostSwitchOptions } from './control/vhost-switch.ts';
export type { ZeroCopyBuffers } from './control/zero-copy.ts';
export { ConfigError, type ConfigErrorCode, ProtocolError, SwitchError, SysError } from './errors.ts';
export type { LcorePlace } from './lcore/lcore-group.ts';
export type { WindowViews } from './mem/window.ts';
export type { LinkState } from './port/device-port.ts';
export type { MemorySlice, RamRegion } from './port/guest-ram.ts';
export type { ChainLayout, NetHeader } from './port/net-queue.ts';
export type { PciRequest } from './port/pci-interface.ts';
export type { Port } from './port/port.ts';
export type { SteeredCount, SteeringCounts } from './port/steering.ts';
export { parseVdev, type Vdev } from './port/vdev.ts';
export type { VhostPort } from './port/vhost-port.ts';
export { VirtioUser, type VirtioUserOptions } from './port/virtio-user.ts';
export {
  LANE_COUNTER_HELP,
  type LaneCounter,
  LCORE_COUNTER_HELP,
  type LcoreCounter,
  PORT_COUNTER_HELP,
  PORT_SLOTS,
  type PortCounter,
  VRING_COUNTER_HELP,
  type VringCounter,
} from './stats/counters.ts';
export type { PortVlan, RxRetryConfig, SwitchConfig, UplinkConfig, VlanConfig } from './switch/switch-config.ts';
export { type FieldType, type Layout, layout, packedLayout } from './uapi/layout.ts';
export { featureMask, hasFeature } from './uapi/virtio.ts';
export type { RequestHandler } from './vhost/request-datapath.ts';
export type { Log, LogLevel } from './vhost-user/limited-log.ts';
export { BURST_SIZE, type Burst } from './virtio-net/burst.ts';
export { GuestBuffer } from './virtqueue/guest-buffer.ts';
export type { VirtioRequest } from './virtqueue/request-queue.ts';
export type { SegmentList } from './virtqueue/segments.ts';
