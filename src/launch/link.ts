/**
 * What joins a guest's network card to the switch: a vhost-user socket, or the switch's character device behind a tap.
 * @see QEMU docs/system/devices/net.rst; qemu-options.hx "-netdev vhost-user", "-netdev tap"
 */
import { ConfigError } from '../errors.ts';
import { added, type Part } from './draft.ts';
import { makeValue, type OptionValue, parseValue } from './option-value.ts';

/** A network to be had: what goes before it, and itself. */
export interface Network {
  readonly before: readonly Part[];
  /** value of a -netdev or -nic, without what belongs to the card */
  readonly value: OptionValue;
  readonly why: string;
}

/** An id that nothing has, this one if possible. */
type FreshId = (wanted: string) => string;

/** Makes the networks of the cards. */
export interface Link {
  /** whether another network takes the place of the one that a card has, or that one is changed */
  readonly replaces: boolean;
  /**
   * The network of card `index`, counted from 0.
   * @param id of the -netdev that it is to be
   * @param old a copy of the network that the card has, without the card's own keys, to make the new one of; undefined for none
   * Throws ConfigError where the old one does not suit.
   */
  network(index: number, id: string, old: OptionValue | undefined, queues: number, freshId: FreshId): Network;
}

const REACHES = 'the switch listens there';

/**
 * A link by vhost-user. Card n goes to socket n, those beyond the last one to the last one.
 * @param reconnect keys of a chardev that has QEMU connect again, asked for once a card is there
 */
export function socketLink(sockets: readonly string[], reconnect: () => Readonly<Record<string, number>>): Link {
  return {
    replaces: true,
    network(index, id, _old, queues, freshId) {
      const path = sockets[Math.min(index, sockets.length - 1)];
      if (path === undefined) {
        const problem = 'is missing: the socket of the switch, as its --socket-file says';
        throw new ConfigError('CONFIG_CONFLICT', '--socket', problem);
      }
      const keys = reconnect();
      const chardev = freshId(`vhost-${id}`);
      const socket = makeValue('socket', { id: chardev, path, ...keys });
      const again = Object.keys(keys).length > 0 ? '; QEMU comes back by itself when the switch has restarted' : '';
      return {
        before: [added('chardev', socket, `${REACHES}${again}`)],
        value: parseValue(makeValue('vhost-user', { id, chardev, ...(queues > 1 ? { queues } : {}) }), 'type'),
        why: 'the card is served by the switch',
      };
    },
  };
}

/**
 * A link by a character device that speaks vhost-net: the tap stays, and QEMU hands its rings to the device.
 * @param open opens a device file for QEMU and tells the text of `vhostfd=`
 */
export function deviceLink(paths: readonly string[], open: (path: string) => string): Link {
  return {
    replaces: false,
    network(index, id, old, queues) {
      if (old?.get('type') !== 'tap') {
        const problem =
          `needs a tap behind each virtio card, and ${id} is ${old === undefined ? 'no network' : `"${old.get('type')}"`}: ` +
          'QEMU hands the rings of no other network to a device; use -netdev tap, or vhost-user by --socket';
        throw new ConfigError('CONFIG_CONFLICT', '--cuse', problem);
      }
      const severalFds = old.get('fds') !== undefined;
      if (queues > 1 && !severalFds) {
        const problem = `${id} has ${queues} queues and QEMU takes several device files beside fds= only; use queues=1`;
        throw new ConfigError('CONFIG_CONFLICT', '--cuse', problem);
      }
      const path = paths[Math.min(index, paths.length - 1)];
      for (const key of ['vhostfd', 'vhostfds']) old.delete(key);
      old.set('vhost', true);
      const fds = Array.from({ length: queues }, () => open(path));
      old.set(severalFds ? 'vhostfds' : 'vhostfd', fds.join(':'));
      return {
        before: [],
        value: old,
        why: `the rings go to the switch by ${path}, which is open as this file descriptor`,
      };
    },
  };
}

/** Keys of a chardev that has QEMU connect again every `seconds`: `reconnect` came to be `reconnect-ms` in 9.2, and goes later. */
export function reconnectKeys(seconds: number, version: readonly [number, number] | undefined): Record<string, number> {
  const [major, minor] = version ?? [0, 0];
  return major > 9 || (major === 9 && minor >= 2) ? { 'reconnect-ms': seconds * 1000 } : { reconnect: seconds };
}
