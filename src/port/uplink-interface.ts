/**
 * Finding the network interface behind an uplink, and saying in words why it cannot be used.
 */
import { SwitchError, SysError } from '../errors.ts';
import { findInterface, type InterfaceInfo } from '../sys/netlink.ts';
import { inNetns } from '../sys/netns.ts';
import { ARPHRD_ETHER } from '../uapi/rtnetlink.ts';

/** An interface's name, and the network namespace it is in; undefined: this process's. */
export interface InterfacePlace {
  readonly netns: string | undefined;
  readonly name: string;
}

/** Reads `eth1` or `namespace:eth1`. */
export function interfacePlace(text: string): InterfacePlace {
  const colon = text.indexOf(':');
  if (colon <= 0) return { netns: undefined, name: text };
  return { netns: text.slice(0, colon), name: text.slice(colon + 1) };
}

/** As the user knows it. */
export const describeInterface = ({ netns, name }: InterfacePlace): string =>
  netns === undefined ? name : `${name} in network namespace ${netns}`;

/** The interface of the uplink `uplink`. Throws SwitchError: UPLINK_NO_INTERFACE, UPLINK_NOT_ETHERNET, UPLINK_NO_RIGHTS. */
export function findUplink(uplink: string, place: InterfacePlace): InterfaceInfo {
  const found = inNamespace(uplink, place, () => findInterface(place.name));
  const text = describeInterface(place);
  if (found === undefined) {
    const problem = `there is no network interface ${text}; ip link lists those that there are`;
    throw new SwitchError('UPLINK_NO_INTERFACE', `${uplink}: ${problem}`);
  }
  if (found.type !== ARPHRD_ETHER)
    throw new SwitchError('UPLINK_NOT_ETHERNET', `${uplink}: ${text} carries no Ethernet frames; use one that does`);
  return found;
}

/** Calls `use` in the interface's namespace. Throws SwitchError when it cannot be entered: UPLINK_NO_INTERFACE, UPLINK_NO_RIGHTS. */
export function inNamespace<T>(uplink: string, place: InterfacePlace, use: () => T): T {
  const { netns } = place;
  if (netns === undefined) return use();
  let entered = false;
  try {
    return inNetns(netns, () => {
      entered = true;
      return use();
    });
  } catch (error) {
    if (entered) throw error;
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw withAdvice(error, uplink, place, 'CAP_SYS_ADMIN');
    const problem = `there is no network namespace ${netns}; ip netns lists those that there are`;
    throw new SwitchError('UPLINK_NO_INTERFACE', `${uplink}: ${problem}`);
  }
}

/** What to do when the kernel has refused for want of a right; any other error as it is. */
export function withAdvice(error: unknown, uplink: string, place: InterfacePlace, right: string): unknown {
  const refused = error instanceof SysError && (error.code === 'EPERM' || error.code === 'EACCES');
  if (!refused) return error;
  const what = `${uplink}: using ${describeInterface(place)} takes the right ${right}`;
  const how = `run as root, or with AmbientCapabilities=${right} in a systemd unit, or give it to Node by setcap ${right.toLowerCase()}+ep`;
  return new SwitchError('UPLINK_NO_RIGHTS', `${what}: ${how}`);
}
