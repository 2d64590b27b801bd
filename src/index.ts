/**
 * vhost-switch as a library: a whole switch, or the pieces to write a vhost-user back end of one's own.
 */

export { VhostHost, type VhostHostEvents, type VhostHostOptions } from './control/vhost-host.ts';
export { type DeviceInfo, VhostSwitch, type VhostSwitchOptions } from './control/vhost-switch.ts';
export { ConfigError, type ConfigErrorCode, ProtocolError, SwitchError, SysError } from './errors.ts';
export type { WindowViews } from './mem/window.ts';
export type { Port } from './port/port.ts';
export type { VhostPort } from './port/vhost-port.ts';
export { VirtioUser, type VirtioUserOptions } from './port/virtio-user.ts';
export { PORT_COUNTER_HELP, PORT_SLOTS, type PortCounter } from './stats/counters.ts';
export type { SwitchConfig } from './switch/switch-config.ts';
export type { Log, LogLevel } from './vhost-user/limited-log.ts';
export { BURST_SIZE, type Burst } from './virtio-net/burst.ts';
export type { SegmentList } from './virtqueue/segments.ts';
