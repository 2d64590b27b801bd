/** One network interface of a libvirt domain as a vhost-user interface. */
import { VIRTIO_NET_MAX_PAIRS } from '../uapi/virtio-net.ts';
import { type Attributes, elementsOf, type XmlElement, type XmlText } from './xml-text.ts';

/** What interfaces are to become. */
export interface InterfaceWish {
  /** Absolute paths of the switch's sockets, 1 to 107 bytes each: the second is for the second interface, the last for all others. */
  readonly sockets: readonly string[];
  /** Queue pairs. Default: as many as the interface has. */
  readonly queues?: number | undefined;
  /** false has the guest leave neither checksums nor segmentation to others, as the sample's wrapper did. Default true. */
  readonly offloads?: boolean;
  /** Seconds until QEMU connects again when it has lost the switch; 0 = it does not. Default 1. */
  readonly reconnect?: number;
}

/** Types of interfaces whose traffic the switch can take over. */
export const TAKES_OVER: readonly string[] = ['network', 'bridge', 'direct', 'ethernet', 'user'];

const VIRTIO_MODELS = ['virtio', 'virtio-transitional', 'virtio-non-transitional'];

/** The offloads of each side, as attributes of <host> and <guest> in <driver>. */
const OFFLOADS: Readonly<Record<'host' | 'guest', readonly string[]>> = {
  host: ['csum', 'gso', 'tso4', 'tso6', 'ecn', 'ufo'],
  guest: ['csum', 'tso4', 'tso6', 'ecn', 'ufo'],
};

/** Attributes of <interface> that libvirt refuses or ignores with vhostuser, and what they are about. */
const FOREIGN_ATTRIBUTES: Readonly<Record<string, string>> = {
  trustGuestRxFilters: 'the switch learns addresses by itself',
  managed: 'there is no tap device',
};

/** Children of <interface> that libvirt refuses or ignores with vhostuser, and what to do without them. */
const FOREIGN_CHILDREN: Readonly<Record<string, string>> = {
  target: 'there is no tap device',
  virtualport: 'there is no bridge',
  bandwidth: 'there is no tap device to limit',
  filterref: 'there is no tap device to filter at',
  vlan: 'a socket of the switch has VLANs for its guests: --socket-file',
  port: 'for guests that do not reach each other there is --vm2vm 0 of vhost-switch',
  backend: 'the switch is the back end',
  script: 'there is no tap device',
  downscript: 'there is no tap device',
  tune: 'there is no tap device',
  coalesce: 'there is no tap device',
  ip: 'nobody sets the address; it is up to the guest',
  route: 'nobody sets the route; it is up to the guest',
  portForward: 'the guest is reached directly',
  guest: 'it is for containers',
};

/** What an interface is called in messages: its MAC address, else its place. @param index among all of the domain, from 0 */
export function nameOf(element: XmlElement, index: number): string {
  return elementsOf(element, 'mac')[0]?.attributes.address?.toLowerCase() ?? `number ${index + 1}`;
}

/** Whether the guest sees a virtio network device. */
export function isVirtio(element: XmlElement): boolean {
  return VIRTIO_MODELS.includes(elementsOf(element, 'model')[0]?.attributes.type);
}

/**
 * Makes a virtio interface one of type vhostuser.
 * @param index among the interfaces that become so, from 0
 * @returns what was changed, each in a line for people
 */
export function rewriteInterface(text: XmlText, element: XmlElement, index: number, wish: InterfaceWish): string[] {
  const changes: string[] = [];
  const say = (what: string) => changes.push(what);
  const socket = wish.sockets[Math.min(index, wish.sockets.length - 1)];
  const [source] = elementsOf(element, 'source');
  const was = source === undefined ? '' : describe(source.attributes, ' of ');
  say(`type '${element.attributes.type}'${was} became 'vhostuser' at ${socket}`);
  rewriteTag(text, element, say);
  writeSource(text, element, source, socket, wish.reconnect ?? 1);
  for (const child of elementsOf(element)) {
    const why = FOREIGN_CHILDREN[child.name];
    if (why === undefined) continue;
    text.remove(child);
    const instead = child.name === 'vlan' ? `${why} ${socketVlan(child)}` : why;
    say(`<${child.name}${describe(child.attributes, ' ')}> dropped: ${instead}`);
  }
  rewriteDriver(text, element, wish, say);
  return changes;
}

function rewriteTag(text: XmlText, element: XmlElement, say: (what: string) => void): void {
  const changes: Record<string, string | undefined> = { type: 'vhostuser' };
  for (const [attribute, why] of Object.entries(FOREIGN_ATTRIBUTES)) {
    const value = element.attributes[attribute];
    if (value === undefined) continue;
    say(`${describe({ [attribute]: value })} dropped: ${why}`);
    changes[attribute] = undefined;
  }
  text.setAttributes(element, changes);
}

function writeSource(
  text: XmlText,
  element: XmlElement,
  source: XmlElement | undefined,
  path: string,
  seconds: number,
): void {
  const gap = text.gapInside(element);
  const reconnect = { enabled: 'yes', timeout: String(seconds) };
  const inside = seconds === 0 ? [] : [text.write('reconnect', reconnect, [], gap)];
  const written = text.write('source', { type: 'unix', path, mode: 'client' }, inside, gap);
  const [mac] = elementsOf(element, 'mac');
  if (source !== undefined) text.replace(source, written);
  else text.insertAfter(mac ?? elementsOf(element)[0], written);
}

function rewriteDriver(text: XmlText, element: XmlElement, wish: InterfaceWish, say: (what: string) => void): void {
  const [driver] = elementsOf(element, 'driver');
  const before: Attributes = driver?.attributes ?? {};
  const changes: Record<string, string | undefined> = {};
  if (before.name === 'qemu') {
    changes.name = undefined;
    say("<driver name='qemu'>: the name dropped: the switch is the back end, not QEMU");
  }
  const queues = wantedQueues(before.queues, wish.queues);
  if (queues !== before.queues) {
    changes.queues = queues;
    say(`<driver queues='${queues}'>${before.queues === undefined ? '' : ` in place of ${before.queues}`}`);
  }
  const sides = wish.offloads === false ? offloadsOff(text, driver, text.gapInside(element)) : [];
  if (sides.length > 0) {
    say('the offloads turned off');
    const written = text.write('driver', { ...before, ...changes }, sides, text.gapInside(element));
    if (driver !== undefined) text.replace(driver, written);
    else text.insertAfter(elementsOf(element, 'model')[0], written);
  } else if (driver !== undefined) text.setAttributes(driver, changes);
  else if (queues !== undefined)
    text.insertAfter(elementsOf(element, 'model')[0], text.write('driver', changes, [], ''));
}

/** As text. What the switch has for a device at most limits what was there. */
function wantedQueues(before: string | undefined, wish: number | undefined): string | undefined {
  if (wish !== undefined) return String(wish);
  return Number(before) > VIRTIO_NET_MAX_PAIRS ? String(VIRTIO_NET_MAX_PAIRS) : before;
}

/** The children of a driver without offloads; none when it has turned them off already. */
function offloadsOff(text: XmlText, driver: XmlElement | undefined, gap: string): string[] {
  let changed = false;
  const children = Object.entries(OFFLOADS).map(([side, names]) => {
    const before: Attributes = (driver && elementsOf(driver, side)[0]?.attributes) ?? {};
    changed ||= names.some((name) => before[name] !== 'off');
    return text.write(side, { ...before, ...Object.fromEntries(names.map((name) => [name, 'off'])) }, [], gap);
  });
  return changed ? children : [];
}

/** The VLANs of an interface as vhost-switch takes them behind a socket's path. */
function socketVlan(vlan: XmlElement): string {
  const tags = elementsOf(vlan, 'tag').map(({ attributes }) => attributes);
  if (tags.length === 1 && vlan.attributes.trunk !== 'yes') return `PATH,vlan=${tags[0].id}`;
  const native = tags.find(({ nativeMode }) => nativeMode !== undefined);
  return `PATH,trunk=${tags.map(({ id }) => id).join('+')}${native === undefined ? '' : `,native=${native.id}`}`;
}

/** Attributes as they are written, for messages. */
function describe(attributes: Attributes, before = ''): string {
  const pairs = Object.entries(attributes).map(([name, value]) => `${name}='${value}'`);
  return pairs.length === 0 ? '' : before + pairs.join(' ');
}
