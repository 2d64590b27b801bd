/**
 * Puts the virtio network cards of a command line on the switch.
 */
import { ConfigError } from '../errors.ts';
import { added, type Draft } from './draft.ts';
import type { Link, Network } from './link.ts';
import { driverOf, findNics, hubNetworks, hubOf, isPci, type Nic, netdevAt, queuesOf } from './nics.ts';
import { makeValue, type OptionValue, parseValue, type Scalar } from './option-value.ts';

export interface NetworkWish {
  readonly link: Link;
  /** false: the flags that the original's document gives to cards */
  readonly offloads: boolean;
  /** Queue pairs of each card; undefined: as many as its network has. */
  readonly queues: number | undefined;
}

const OFFLOADS_OFF = { csum: false, gso: false, guest_tso4: false, guest_tso6: false, guest_ecn: false };
/** Keys of -nic that are the card's; the others are the network's. */
const NIC_KEYS = ['model', 'mac'];
const OWN_SOCKET = ['vhost-user', 'vhost-vdpa'];

const GONE = 'the switch takes its place';
const MOVED = 'it is a -netdev now';
const NO_OFFLOADS = '--offloads off';
const SAME_ADDRESS =
  'a card without mac= has the address 52:54:00:12:34:56 in every guest of QEMU: with several on the switch, give each its own';
const QUEUES = 'several queues need mq=on, and a vector for each ring and two more';

/** @returns how many cards are served over vhost, those that were before among them */
export function switchNetwork(draft: Draft, wish: NetworkWish): number {
  const nics = findNics(draft);
  let served = 0;
  let index = 0;
  for (const nic of nics) {
    const what = draft.line[nic.at].words.join(' ');
    if (!nic.isVirtio) {
      draft.remarks.push(`left alone, since it is no virtio card: ${what}`);
      continue;
    }
    const has = networkType(draft, nic);
    if (has === undefined && nic.netdev !== undefined) {
      draft.remarks.push(`left alone, since its network ${nic.netdev} is made elsewhere: ${what}`);
    } else if (has !== undefined && OWN_SOCKET.includes(has)) {
      served++;
      draft.remarks.push(`left alone, since it is ${has} already: ${what}`);
    } else {
      served++;
      place(draft, nic, index++, wish);
    }
  }
  if (nics.some((nic) => nic.isVirtio && !hasAddress(draft, nic))) draft.remarks.push(SAME_ADDRESS);
  refuseFilters(draft);
  return served;
}

/** Whether the address of a card is given, and not QEMU's own. */
function hasAddress(draft: Draft, { form, at }: Nic): boolean {
  return draft.value(at).get(form === 'net' ? 'macaddr' : 'mac') !== undefined;
}

/** The kind of network a card has in an option of its own; undefined for none there. */
function networkType(draft: Draft, { form, at, netdev }: Nic): string | undefined {
  if (netdev === undefined) return form === 'nic' ? draft.value(at).get('type') : undefined;
  const network = netdevAt(draft, netdev);
  return network === undefined ? undefined : draft.value(network).get('type');
}

function place(draft: Draft, nic: Nic, index: number, wish: NetworkWish): void {
  if (nic.form === 'nic') placeNic(draft, nic, index, wish);
  else if (nic.netdev === undefined) placeUnconnected(draft, nic, index, wish);
  else placeNetdev(draft, nic, nic.netdev, index, wish);
}

/** A card that names its network, which goes where the old one was. */
function placeNetdev(draft: Draft, nic: Nic, id: string, index: number, wish: NetworkWish): void {
  const at = netdevAt(draft, id) as number;
  const old = draft.value(at);
  const queues = wish.queues ?? queuesOf((key) => old.get(key));
  if (wish.link.replaces) {
    draft.leaveOut(at, GONE);
    draft.insert(at, asNetdev(wish.link.network(index, id, old, queues, draft.freshId), id));
  } else {
    const { value, why } = wish.link.network(index, id, copyOf(old), queues, draft.freshId);
    draft.replaceValue(at, value, why);
  }
  setCard(draft, nic, queues, wish);
}

/** A card on a hub, or on no network at all. */
function placeUnconnected(draft: Draft, nic: Nic, index: number, wish: NetworkWish): void {
  const id = draft.freshId(`switch${index}`);
  const old = nic.form === 'net' ? takeFromHub(draft, nic, wish.link) : undefined;
  const queues = wish.queues ?? (old === undefined ? 1 : queuesOf((key) => old.get(key)));
  draft.insert(nic.at, asNetdev(wish.link.network(index, id, old, queues, draft.freshId), id));
  draft.set(nic.at, { netdev: id }, 'its network is now the switch');
  if (nic.form === 'net') draft.delete(nic.at, 'vlan', 'its network is now the switch');
  setCard(draft, nic, queues, wish);
}

/** The network of a hub, which nobody needs any more once all its cards are on the switch. */
function takeFromHub(draft: Draft, nic: Nic, link: Link): OptionValue | undefined {
  const hub = hubOf(draft, nic.at);
  const networks = hubNetworks(draft, hub);
  const others = findNics(draft).filter(
    (other) => other.form === 'net' && other.netdev === undefined && hubOf(draft, other.at) === hub,
  );
  const virtio = others.filter((other) => other.isVirtio);
  if (!link.replaces && (networks.length !== 1 || virtio.length !== 1 || others.length !== 1)) {
    const problem = 'a tap on a hub cannot be given to one card; write -netdev tap,id=NAME and -device …,netdev=NAME';
    throw new ConfigError('CONFIG_CONFLICT', '-net', problem);
  }
  if (others.length === virtio.length) {
    for (const at of networks) draft.leaveOut(at, link.replaces ? GONE : MOVED);
  }
  if (link.replaces) return undefined;
  const old = copyOf(draft.value(networks[0]));
  old.delete('vlan');
  return old;
}

/** A card and its network in one option: it stays one, unless the card needs what -nic cannot say. */
function placeNic(draft: Draft, nic: Nic, index: number, wish: NetworkWish): void {
  const own = draft.value(nic.at);
  const id = own.get('id') ?? draft.freshId(`switch${index}`);
  const old = copyOf(own);
  const card: Record<string, Scalar> = {};
  for (const key of NIC_KEYS) {
    const text = own.get(key);
    if (text !== undefined) card[key] = text;
    old.delete(key);
  }
  const queues = wish.queues ?? queuesOf((key) => old.get(key));
  const network = wish.link.network(index, id, old, queues, draft.freshId);
  if (queues === 1 && wish.offloads) {
    const { value, why } = network;
    if (own.get('id') === undefined) value.delete('id');
    for (const [key, text] of Object.entries(card)) value.set(key, text);
    draft.insert(nic.at, network.before);
    draft.replaceValue(nic.at, value, why);
    return;
  }
  draft.leaveOut(nic.at, 'a -netdev and a -device take its place');
  const driver = driverOf(nic.model);
  const keys = {
    netdev: id,
    ...(card.mac === undefined ? {} : { mac: card.mac }),
    ...cardKeys(driver, () => undefined, queues, wish),
  };
  draft.insert(nic.at, [
    ...asNetdev(network, id),
    added('device', makeValue(driver, keys), 'the card of -nic, which cannot say the rest'),
  ]);
}

/** What a card needs beyond its network. */
function setCard(draft: Draft, nic: Nic, queues: number, wish: NetworkWish): void {
  const driver = driverOf(nic.model);
  if (nic.form === 'device') {
    const value = draft.value(nic.at);
    const keys = Object.entries(cardKeys(driver, (key) => value.get(key), queues, wish));
    for (const [key, scalar] of keys) draft.set(nic.at, { [key]: scalar }, key in OFFLOADS_OFF ? NO_OFFLOADS : QUEUES);
    return;
  }
  if (queues === 1 && wish.offloads) return;
  const value = draft.value(nic.at);
  const mac = value.get('macaddr');
  const keys: Record<string, Scalar | undefined> = {
    netdev: value.get('netdev') as string,
    mac,
    ...{ id: value.get('name'), addr: value.get('addr'), vectors: value.get('vectors') },
    ...cardKeys(driver, (key) => value.get(key), queues, wish),
  };
  draft.leaveOut(nic.at, 'a -device takes its place');
  draft.insert(nic.at, [added('device', makeValue(driver, keys), 'the card of -net nic, which cannot say the rest')]);
}

/** Properties of a card for its queues and offloads, as far as it does not have them. */
function cardKeys(
  driver: string,
  get: (key: string) => string | undefined,
  queues: number,
  { offloads }: NetworkWish,
): Record<string, Scalar> {
  const keys: Record<string, Scalar> = {};
  if (queues > 1) {
    const vectors = get('vectors');
    const needed = 2 * queues + 2;
    if (get('mq') !== 'on') keys.mq = true;
    // none at all is somebody's wish for plain interrupts
    if (isPci(driver) && vectors !== '0' && !(Number(vectors) >= needed)) keys.vectors = needed;
  }
  return offloads ? keys : { ...keys, ...OFFLOADS_OFF };
}

function asNetdev({ before, value, why }: Network, id: string) {
  value.set('id', id);
  return [...before, added('netdev', value.toString(), why)];
}

const copyOf = (value: OptionValue) => parseValue(value.toString(), 'type');

/** QEMU's filters see no packet of a network that is not QEMU's own, and it does not start with them. */
function refuseFilters(draft: Draft): void {
  const networks = draft
    .parts()
    .filter(({ words, change }) => /^--?(netdev|nic)$/.test(words[0]) && (change === 'added' || change === 'changed'));
  const switched = networks.map(({ words: [, value] }) => parseValue(value, 'type').get('id'));
  draft.line.forEach(({ name }, at) => {
    if (name !== 'object') return;
    const value = draft.value(at);
    const type = value.get('qom-type') ?? '';
    if (!type.startsWith('filter-') || !switched.includes(value.get('netdev'))) return;
    const problem = `filters nothing on ${value.get('netdev')}, whose packets do not pass through QEMU any more; leave it out`;
    throw new ConfigError('CONFIG_CONFLICT', `-object ${type}`, problem);
  });
}
