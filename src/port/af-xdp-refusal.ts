/**
 * What the kernel's refusals mean to who asks for a port of net_af_xdp, and what to do about them.
 */
import { SwitchError, SysError } from '../errors.ts';
import { describeInterface, type InterfacePlace } from './uplink-interface.ts';
import type { VdevOf } from './vdev.ts';

/** An error of opening the port, in words: SwitchError (UPLINK_…); one that says all there is to say as it is. */
export function xdpRefusal(error: unknown, { name, values }: VdevOf<'net_af_xdp'>, place: InterfacePlace): unknown {
  if (!(error instanceof SysError)) return error;
  const text = describeInterface(place);
  const { mode, start_queue, queue_count } = values;
  const queues =
    queue_count === 1 ? `queue ${start_queue}` : `queues ${start_queue} to ${start_queue + queue_count - 1}`;
  const attaching = error.syscall === 'bpf' && error.message.includes('LINK_CREATE');
  switch (error.code) {
    case 'EPERM':
      return new SwitchError(
        'UPLINK_NO_RIGHTS',
        `${name}: using ${text} takes the rights CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF: run as root, or with ` +
          `AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW CAP_BPF in the systemd unit (${error.message})`,
      );
    case 'ENODEV':
      return new SwitchError('UPLINK_NO_INTERFACE', `${name}: ${text} was removed meanwhile (${error.message})`);
    case 'ENOBUFS':
      return new SwitchError(
        'UPLINK_NO_RIGHTS',
        `${name}: its frames may not be kept in memory: raise the limit (ulimit -l), or run with CAP_IPC_LOCK (${error.message})`,
      );
    case 'ENOSYS':
    case 'EAFNOSUPPORT':
      return new SwitchError(
        'UPLINK_NOT_SUPPORTED',
        `${name}: this kernel has no AF_XDP sockets or no bpf(2); use net_af_packet instead (${error.message})`,
      );
    case 'EBUSY':
    case 'EEXIST': {
      const problem = attaching
        ? `${text} has another XDP program; end who uses it, or detach it: ip link set dev ${place.name} xdp off`
        : `another AF_XDP socket uses ${queues} of ${text}; end who has it, or use another queue: start_queue`;
      return new SwitchError('UPLINK_IN_USE', `${name}: ${problem} (${error.message})`);
    }
    default: {
      if (attaching)
        return new SwitchError(
          'UPLINK_NOT_SUPPORTED',
          `${name}: the driver of ${text} takes no XDP program as things are; use mode=skb (${error.message})`,
        );
      if (error.syscall !== 'bind') return error;
      if (mode === 'zc' && error.code !== 'EINVAL')
        return new SwitchError(
          'UPLINK_NOT_SUPPORTED',
          `${name}: the driver of ${text} has no zero copy; use mode=auto (${error.message})`,
        );
      return new SwitchError(
        'UPLINK_NO_QUEUE',
        `${name}: ${text} has not the ${queues}, or its MTU is too much; see ip -d link (${error.message})`,
      );
    }
  }
}
